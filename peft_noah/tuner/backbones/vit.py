"""ViT and its kin: `vit`, `vit_msn`, `ijepa`, `deit`, `dinov2`."""

from __future__ import annotations

from dataclasses import replace

from peft_noah.tuner.backbones.base import Backbone

_VIT = Backbone(
    blocks="layers", mlp_output="mlp.fc2", norm="layernorm_before", norm_after="layernorm_after", head_tokens=1
)
_DINOV2 = Backbone(
    blocks="encoder.layer",
    mlp_output="layer_scale2",
    norm="norm1",
    attention_output="layer_scale1",
    linears={
        "output": "attention.o_proj",
        "gate": "mlp.gate_proj",  # of the giant one alone
        "fc1": ("mlp.fc1", "mlp.up_proj"),
        "fc2": ("mlp.fc2", "mlp.down_proj"),
    },
    norm_after="norm2",
    drop="drop_path",
)

FAMILIES: dict[str, Backbone] = {
    "vit": _VIT,
    "vit_msn": _VIT,
    "ijepa": replace(_VIT, prefix_tokens=0, head_tokens=None),  # its classifier reads the mean of all patches
    # with the head of its distillation token where it has one, as most of the family's checkpoints have
    "deit": replace(
        _VIT,
        prefix_tokens=2,
        head=("classifier", "cls_classifier", "distillation_classifier"),
        head_tokens=2,
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
}
