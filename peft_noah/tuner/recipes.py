"""The two recipes of NOAH: values of the options of `NoahConfig` that are left out."""

from __future__ import annotations

from typing import Any

#: width of a backbone on which a LoRA strength of 1 is a scale of 1. Adam moves each weight by about the learning rate, however
#: wide the layer, so the same scale changes a wider layer's output more: in proportion to the width, if what is learnt is
#: aligned with the input (Yang et al., arXiv 2203.03466, table 3). The number was measured: docs/race.md.
STRENGTH_WIDTH = 1536

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
