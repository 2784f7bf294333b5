"""A Vision Transformer of timm, inside transformers' wrapper; timm must be installed."""

from __future__ import annotations

from peft_noah.tuner.backbones.base import Backbone

FAMILIES: dict[str, Backbone] = {
    "timm_wrapper": Backbone(
        blocks="timm_model.blocks",
        projections={"qkv": "attn.qkv"},  # one Linear makes query, key and value
        linears={"output": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
        attention_output="ls1",
        mlp_output="ls2",
        norm="norm1",
        norm_after="norm2",
        head="timm_model.head",
        images="fixed",
        not_fast="its blocks are timm's own, which make query, key and value by one product themselves",
    )
}
