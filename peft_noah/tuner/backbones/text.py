"""Encoders of text: `bert` and those that are built like it, `distilbert`, `deberta-v2` and `modernbert`."""

from __future__ import annotations

from dataclasses import replace

from peft_noah.tuner.backbones.base import Backbone

_NORMS_BEHIND = "the norms of these blocks come behind the branches"

_BERT = Backbone(
    blocks="encoder.layer",
    projections={"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"},
    linears={"output": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
    attention_output="attention.output.dense",
    mlp_output="output.dense",
    # norms come behind the branches: the first one is as good a place for tokens, which enter before the block, as any
    norm="attention.output.LayerNorm",
    norm_after="output.LayerNorm",
    not_fast=_NORMS_BEHIND,
    reads="texts",
    head=("classifier.out_proj", "classifier"),
    before_head=("classifier.dense",),
)

FAMILIES: dict[str, Backbone] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": Backbone(
        blocks="transformer.layer",
        projections={"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin"},
        linears={"output": "attention.out_lin", "fc1": "ffn.lin1", "fc2": "ffn.lin2"},
        attention_output="attention.out_lin",
        mlp_output="ffn.lin2",
        norm="sa_layer_norm",
        norm_after="output_layer_norm",
        not_fast=_NORMS_BEHIND,
        reads="texts",
        before_head=("pre_classifier",),
    ),
    "deberta-v2": replace(
        _BERT,
        projections={
            "query": "attention.self.query_proj",
            "key": "attention.self.key_proj",
            "value": "attention.self.value_proj",
        },
        head="classifier",
        before_head=("pooler",),
        no_tokens="attention looks up how far apart each two tokens of the text are, and further ones have no place there",
    ),
    "modernbert": Backbone(
        blocks="layers",
        projections={"query_key_value": "attn.Wqkv"},
        linears={"output": "attn.Wo", "fc1": "mlp.Wi", "fc2": "mlp.Wo"},
        attention_output="attn.Wo",
        mlp_output="mlp.Wo",
        norm="mlp_norm",  # the first block has no other
        before_head=("head",),
        reads="texts",
        no_tokens="positions are turned into rotations of the text's own tokens, and most blocks see a window of them alone",
        not_fast="one Linear makes query, key and value, and they are rotated",
    ),
}
