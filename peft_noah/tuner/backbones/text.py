"""Encoders of text: `bert` and those that are built like it, and `distilbert`."""

from __future__ import annotations

from peft_noah.tuner.backbones.base import Backbone

_BERT = Backbone(
    blocks="encoder.layer",
    projections={"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value"},
    linears={"output": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
    attention_output="attention.output.dense",
    mlp_output="output.dense",
    # norms come behind the branches: the first one is as good a place for tokens, which enter before the block, as any
    norm="attention.output.LayerNorm",
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
        reads="texts",
        before_head=("pre_classifier",),
    ),
}
