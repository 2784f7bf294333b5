"""Decoders of text: `llama` and those that are built like it, and Gemma with norms behind the branches too."""

from __future__ import annotations

from dataclasses import replace

from peft_noah.tuner.backbones.base import Backbone

_LLAMA = Backbone(
    blocks="layers",
    projections={"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"},
    linears={"output": "self_attn.o_proj", "gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"},
    attention_output="self_attn.o_proj",
    mlp_output="mlp.down_proj",
    norm="input_layernorm",
    head="score",
    reads="texts",
    no_tokens="tokens in front would move the positions of the text, and the cache would keep them; prefixes do neither",
    not_fast="queries and keys are rotated",
)
#: two more norms, on what each branch adds
_GEMMA2 = replace(_LLAMA, attention_output="post_attention_layernorm", mlp_output="post_feedforward_layernorm")

FAMILIES: dict[str, Backbone] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}
