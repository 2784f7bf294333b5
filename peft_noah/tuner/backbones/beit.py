"""BEiT and data2vec: factors of the block's own on both branches, and relative position biases."""

from __future__ import annotations

from peft_noah.tuner.backbones.base import Backbone

FAMILIES: dict[str, Backbone] = {
    "beit": Backbone(
        blocks="layers",
        mlp_output="mlp.fc2",
        norm="layernorm_before",
        norm_after="layernorm_after",
        drop=("dropout", "drop_path"),
        images="any",
        scales=("lambda_1", "lambda_2"),
        position_bias="relative_position_bias",
    ),
    "data2vec-vision": Backbone(
        blocks="encoder.layer",
        projections={
            "query": "attention.attention.query",
            "key": "attention.attention.key",
            "value": "attention.attention.value",
        },
        linears={"output": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
        attention_output="attention.output.dense",
        mlp_output="output.dense",
        norm="layernorm_before",
        norm_after="layernorm_after",
        images="any",
        position_bias="attention.attention.relative_position_bias",
        not_fast="transformers' data2vec-vision hands nothing that a call says on to its blocks",
    ),
}
