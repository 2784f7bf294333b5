"""Hierarchical families: widths grow from stage to stage, and blocks see windows or pool, so that tokens have no place."""

from __future__ import annotations

from peft_noah.tuner.backbones.base import Backbone

_WINDOWS = "its blocks attend inside windows with a fixed number of places"

FAMILIES: dict[str, Backbone] = {
    "swin": Backbone(
        blocks="encoder.layers.*.blocks",
        mlp_output="mlp.fc2",
        norm="layernorm_before",
        norm_after="layernorm_after",
        images="any",
        no_tokens=_WINDOWS,
        not_fast="its blocks shift and cut the image into windows",
    ),
    "swinv2": Backbone(
        blocks="encoder.layers.*.blocks",
        projections={"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"},
        linears={"output": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
        attention_output="layernorm_before",  # norms stand at the ends of the branches
        mlp_output="layernorm_after",
        norm="layernorm_before",
        norm_after="layernorm_after",
        images="any",
        no_tokens=_WINDOWS,
        not_fast="its blocks shift and cut the image into windows",
    ),
    "hiera": Backbone(
        blocks="encoder.stages.*.layers",
        projections={"qkv": "attn.qkv"},
        linears={"output": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
        attention_output="attn.proj",
        mlp_output="mlp.fc2",
        norm="layernorm_before",
        norm_after="layernorm_after",
        no_tokens="its blocks pool tokens by their places in the image",
        not_fast="its blocks pool tokens by their places in the image",
    ),
}
