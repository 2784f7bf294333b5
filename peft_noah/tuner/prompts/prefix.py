"""Prefixes: learned keys and values that a block's tokens attend to, beside those of the tokens themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.tuner.prompts.base import PromptModule, init_normal

#: what transformers' registry calls `attend_with_prefixes`
ATTENTION = "noah_prefix"


class Prefix(PromptModule):
    """m learned keys and values in front of those of a block's attention, with elastic m.

    ``softmax(s q [P_k; k]^T + mask) [P_v; v]`` for each head, with ``keys`` P_k (m, H d) and ``values`` P_v (m, H d): 2 m H d
    parameters for H heads of keys and width d. Every query sees all of them, whatever mask or window hides of the tokens.
    They have no position: they are not rotated, no other position moves, and no token, hidden state or cache grows. So it
    works where a block can read no further tokens (`Backbone.no_tokens`), and with the cache of a decoder.

    Source: Prefix-Tuning (arXiv 2101.00190). It makes both by an MLP while they are trained, and starts from activations of
    real words; here they are trained themselves, from a normal of std 0.02, as VPT's tokens are.
    """

    name = "prefix"
    site = "attention"
    label = "Prefix (keys)"
    colour = "#AA4499"
    alone = 10  # as many as VPT
    is_tokenwise = True  # the key of a token depends on that token alone

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        return {"keys": (dim, self.out_features), "values": (dim, self.out_features)}

    def reset_parameters(self, config) -> None:
        init_normal(self.keys, config.init_weights)
        init_normal(self.values, config.init_weights)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Leaves the tokens' keys ``y`` as they are: `attend_with_prefixes` puts the prefix in front."""
        return y

    def visible(self) -> torch.Tensor | None:
        """Which of the keys are seen, (m,), while shapes are fixed; None: all."""
        if self.chosen is None:
            return None
        return torch.arange(len(self.keys), device=self.keys.device) < self.chosen_size(0)

    @classmethod
    def attach(cls, block: nn.Module, backbone) -> None:
        """Let the block's attention use our function; all else of the model sees the config as it is."""
        path, _, key = backbone.linear_sites(block)["key"].rpartition(".")
        attention = block.get_submodule(path)
        if not isinstance(attention.config, PrefixConfig):
            attention.config = PrefixConfig(attention.config, key)

    @classmethod
    def detach(cls, block: nn.Module) -> None:
        """Give an attention its config back."""
        if isinstance(getattr(block, "config", None), PrefixConfig):
            block.config = block.config.config

    @classmethod
    def check_batch(cls, one: Sequence[Prefix], other: Sequence[Prefix], names: tuple[str, str]) -> None:
        """Refuse adapters with prefixes of other lengths: the keys of one batch have one length.

        Raises:
            ValueError: names the block, and the lengths.
        """
        ours, theirs = ({prefix.block: prefix.dim for prefix in prefixes} for prefixes in (one, other))
        for block in sorted(ours.keys() | theirs.keys()):
            if ours.get(block, 0) != theirs.get(block, 0):
                raise ValueError(
                    f"adapters {names[0]!r} and {names[1]!r} cannot share a batch: in block {block} they have prefixes of "
                    f"{ours.get(block, 0)} and {theirs.get(block, 0)}. Mix adapters with equal ones, or call the model once per "
                    "adapter."
                )


class PrefixConfig:
    """A model's config as one attention of it sees it: the same, but for the function that computes attention.

    Args:
        config: the model's, which is asked for all else, also if it is changed later.
        key: name of the Linear of the keys in this attention, whose layer holds the prefixes.
    """

    _attn_implementation = ATTENTION

    def __init__(self, config: Any, key: str) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # takes seconds, and no label needs it

        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend_with_prefixes)
        self.config, self.key = config, key

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # how it is copied is its own affair
            raise AttributeError(name)
        return getattr(self.config, name)

    def __reduce__(self) -> tuple[type[PrefixConfig], tuple[Any, str]]:
        return type(self), (self.config, self.key)  # a copy belongs to the copy of the model


def attend_with_prefixes(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention with the prefixes of the active adapters, called as transformers calls its attention functions.

    It extends keys, values and mask, and leaves the rest to the function that the model's config names. Keys of a cache are
    among ``key`` by then, and the prefixes are none of them. Weights that it gives back have columns for the prefixes in
    front.

    Args:
        module: the attention.
        query: (B, H, T, d).
        key, value: (B, H or fewer, S, d).
        attention_mask: (B or 1, 1 or H, T or 1, S), boolean (True: seen) or additive; (B, S) for flash attention; None.
        **kwargs: whatever that function takes.

    Raises:
        ValueError: on a mask, a cache or a window of flash attention that has no place for prefixes.
    """
    config = module.config.config
    own, name = sys.modules[type(module).__module__], config._attn_implementation
    function = own.ALL_ATTENTION_FUNCTIONS.get_interface(name, getattr(own, "eager_attention_forward", None))
    found = _prefixes(module.get_submodule(module.config.key), len(key))
    if not found:
        return function(module, query, key, value, attention_mask, **kwargs)
    _check(name, attention_mask, kwargs)
    if attention_mask is None and "flash" not in name and _is_causal(module, query, kwargs):
        # longer keys without a mask are an empty cache behind the tokens, of which nothing is seen
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        attention_mask = query.new_ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()[None, None]
    length = key.shape[2]
    key = torch.cat([*(_by_head(keys, key) for keys, _, _ in found), key], 2)
    value = torch.cat([*(_by_head(values, value) for _, values, _ in found), value], 2)
    ahead = key.shape[2] - length
    visible = _all_visible(found, key.device)
    mask = _with_columns(attention_mask, visible, ahead, length)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (ahead, 0))
    if name == "eager" and mask is not None and mask.dtype == torch.bool:  # it adds what it gets
        mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
    return function(module, query, key, value, mask, **kwargs)


def _by_head(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Prefixes (1 or B, m, H d) as (B, H, m, d), in the type of keys or values (B, H, S, d)."""
    return rows.unflatten(-1, (like.shape[1], -1)).transpose(1, 2).expand(len(like), -1, -1, -1).to(like.dtype)


def _prefixes(layer: nn.Module, size: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Keys and values (1 or ``size``, m, H d) of each active adapter, with what is seen of them; of a mixed batch, one pair."""
    if layer.batch_adapters is None:
        active = [module for module in layer.active_modules() if isinstance(module, Prefix)]
        return [(one.active("keys")[None], one.active("values")[None], one.visible()) for one in active]
    by_sample = [
        [m for m in layer.prompt_modules(name) if isinstance(m, Prefix) and m.dim] for name in layer.batch_adapters
    ]
    if layer.disable_adapters or not all(by_sample):  # their lengths are equal, see `Prefix.check_batch`
        return []
    each = size // len(by_sample)  # windows of an image
    keys, values = (
        torch.stack([modules[0].active(weight) for modules in by_sample]).repeat_interleave(each, 0)
        for weight in ("keys", "values")
    )
    return [(keys, values, None)]


def _is_causal(module: nn.Module, query: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether transformers' functions would hide later tokens where there is no mask."""
    asked = kwargs.get("is_causal")
    return query.shape[2] > 1 and (getattr(module, "is_causal", True) if asked is None else asked)


def _check(name: str, mask: object, kwargs: dict[str, Any]) -> None:
    problem = None
    if mask is not None and not isinstance(mask, torch.Tensor):
        problem = f"masks of {name!r} attention cannot be extended"
    elif kwargs.get("cache") is not None:
        problem = "continuous batching keeps keys where prefixes cannot stand"
    elif "flash" in name and kwargs.get("sliding_window") is not None:
        problem = f"the window of {name!r} attention would hide them"
    if problem is not None:
        raise ValueError(
            f"prefixes cannot be used in this call: {problem}. Load the model with attn_implementation='sdpa'."
        )


def _all_visible(found: Sequence[tuple], device: torch.device) -> torch.Tensor | None:
    """Which of all prefixes' keys are seen, (m,); None: all."""
    if all(visible is None for *_, visible in found):
        return None
    parts = [
        torch.ones(keys.shape[1], dtype=torch.bool, device=device) if visible is None else visible
        for keys, _, visible in found
    ]
    return torch.cat(parts)


def _with_columns(
    mask: torch.Tensor | None, visible: torch.Tensor | None, ahead: int, length: int
) -> torch.Tensor | None:
    """A mask over ``length`` keys with columns for ``ahead`` more in front, of which ``visible`` (ahead,) are seen."""
    if mask is None:
        return None if visible is None else F.pad(visible, (0, length), value=True)[None, None, None]
    seen = mask.new_zeros(ahead) if mask.is_floating_point() else mask.new_ones(ahead)
    if visible is not None:
        seen = seen.masked_fill(~visible, torch.finfo(mask.dtype).min if mask.is_floating_point() else 0)
    return torch.cat([seen.expand(*mask.shape[:-1], -1), mask], -1)
