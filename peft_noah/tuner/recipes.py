"""The two recipes of NOAH: values of the options of `NoahConfig` that are left out."""

from __future__ import annotations

from typing import Any

#: what the paper says and what its released code does, where they differ in what a model computes
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "lora_shared_down": False,
        "lora_scale": 1.0,
        "adapter_scale": 1.0,
        "adapter_activation": "relu",
        "vpt_position": "after_cls",
        "vpt_past_depth": "drop",
        "init": "identity",
        "dropout": 0.0,
        "drop_path": 0.0,
    },
    "released": {
        "lora_shared_down": True,
        "lora_scale": 1.0,
        "adapter_scale": 1.0,
        "adapter_activation": "quick_gelu",
        "vpt_position": "last",
        "vpt_past_depth": "carry",
        "init": "normal",
        "dropout": 0.1,
        "drop_path": 0.1,
    },
}
