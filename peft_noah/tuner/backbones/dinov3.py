"""DINOv3, for which transformers has no image classifier: it is adapted inside a module of the user's own."""

from __future__ import annotations

from peft_noah.tuner.backbones.base import Backbone

FAMILIES: dict[str, Backbone] = {
    "dinov3_vit": Backbone(
        blocks="model.layer",
        mlp_output="layer_scale2",
        norm="norm1",
        attention_output="layer_scale1",
        linears={
            "output": "attention.o_proj",
            "gate": "mlp.gate_proj",  # of the giant one alone
            "fc1": "mlp.up_proj",
            "fc2": "mlp.down_proj",
        },
        norm_after="norm2",
        drop="drop_path",
        images="any",
        tokens_first=True,
        rotary=True,
    )
}
