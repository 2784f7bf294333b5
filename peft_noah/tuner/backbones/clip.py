"""CLIP and SigLIP: the image half of a pair of models, with a classifier on it or alone."""

from __future__ import annotations

from dataclasses import replace

from peft_noah.tuner.backbones.base import Backbone

_CLIP = Backbone(
    blocks="encoder.layers",
    projections={"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
    linears={"output": "self_attn.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    attention_output="self_attn.out_proj",
    mlp_output="mlp.fc2",
    norm="layer_norm1",
    norm_after="layer_norm2",
    attention="self_attn",
    drop=(),
)
_SIGLIP = replace(_CLIP, prefix_tokens=0)  # all tokens are patches
_KINDS = {
    "clip": _CLIP,
    "metaclip_2": _CLIP,
    "siglip": _SIGLIP,
    "siglip2": replace(_SIGLIP, images="patches"),
}

FAMILIES: dict[str, Backbone] = {**_KINDS, **{f"{name}_vision_model": kind for name, kind in _KINDS.items()}}
