"""Tokens that a block reads beside the image's own: how they enter, run on and leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from peft_noah.tuner.backbones import has_module
from peft_noah.tuner.prompts.base import PromptModule

#: keyword argument of a block whose fast forward reads the tokens itself, so that the hooks have nothing to do
FAST_CALL = "noah_fast_call"

#: tokens in the stream as a block is entered and left: plain data, so that a hook needs no state of its own
Stream = tuple[int, int]


class TokenModule(PromptModule):
    """A module that adds tokens to its block's input and takes them out behind it.

    A subclass has a weight ``tokens`` (m, D), a ``position`` (``"after_cls"`` or ``"last"``) and a ``dropout``. The
    module's site is the block's first norm, a leaf that PEFT can wrap; `insert_tokens` and `strip_tokens` hook the block
    around it. Tokens of several active adapters stand side by side, in the order of activation.
    """

    site = "norm"
    is_tokenwise = True
    adds_tokens = True
    position: str
    dropout: nn.Module
    #: tokens as its block is entered and left; and while shapes are fixed, the largest of all choices
    stream: Stream = (0, 0)
    largest_stream: Stream = (0, 0)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Leaves the norm's output ``y`` as it is: the tokens enter before the block."""
        return y

    @classmethod
    def attach(cls, block: nn.Module, backbone) -> None:
        """Hook ``block`` once, whatever the number of adapters."""
        if not any(map(cls.owns_hook, block._forward_pre_hooks.values())):
            where = {"site": backbone.norm, "prefix": backbone.prefix_tokens}
            block.register_forward_pre_hook(partial(insert_tokens, **where), with_kwargs=True)
            # first of all hooks: whoever records outputs then sees hidden states of the usual length
            block.register_forward_hook(partial(strip_tokens, **where), prepend=True, with_kwargs=True)
            if backbone.position_bias is not None and has_module(block, backbone.position_bias):
                bias = block.get_submodule(backbone.position_bias)
                bias.register_forward_pre_hook(partial(_without_tokens, block=block, **where), with_kwargs=True)
                bias.register_forward_hook(partial(_grow_bias, block=block, **where))

    @classmethod
    def detach(cls, block: nn.Module) -> None:
        """Take the hooks off again.

        They are found in the block rather than through stored handles: handles of a deep-copied model point at the
        original.
        """
        for hooks, extra in (
            (block._forward_pre_hooks, block._forward_pre_hooks_with_kwargs),
            (block._forward_hooks, block._forward_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if cls.owns_hook(hook)]:
                del hooks[key]
                extra.pop(key, None)

    @classmethod
    def owns_hook(cls, hook: object) -> bool:
        """Whether a hook is one of those that `attach` places."""
        return isinstance(hook, partial) and hook.func in (insert_tokens, strip_tokens, _without_tokens, _grow_bias)

    @property
    def passing(self) -> int:
        """Number of tokens that the block processes: its own, else those that run on."""
        return self.live or self.flow[0]

    @property
    def flow(self) -> Stream:
        """The stream as it is computed: while shapes are fixed, the largest one."""
        return self.stream if self.chosen is None else self.largest_stream

    def choice(self) -> list[int]:
        """The size of the slice, and how many tokens the block reads."""
        return [*super().choice(), self.dim or self.stream[0]]

    def visible(self, keys: int, first: int) -> torch.Tensor | None:
        """Which of the keys a query sees, (1, 1, 1, ``keys``), where the tokens begin at ``first``; None: all."""
        if self.chosen is None:
            return None
        place = torch.arange(keys, device=self.tokens.device) - first
        return ((place < self.chosen_size(1)) | (place >= self.passing))[None, None, None]

    def own_tokens(self, size: int, batch: list[TokenModule] | None = None) -> torch.Tensor:
        """This block's tokens for ``size`` samples, (size, m, D), each sample with dropout of its own."""
        if batch is None:
            return self.dropout(self.active("tokens").expand(size, -1, -1))
        return self.dropout(torch.stack([vpt.active("tokens") for vpt in batch]))

    def insert(self, hidden: torch.Tensor, prefix: int, batch: list[TokenModule] | None = None) -> torch.Tensor:
        """Put this block's tokens where the previous ones were; ``hidden`` (B, T, D), ``prefix`` class tokens.

        ``batch`` names the module of each sample where they differ; all have this one's dim.
        """
        if not self.live:
            return hidden
        tokens, entering = self.own_tokens(hidden.shape[0], batch).to(hidden.dtype), self.flow[0]
        if self.chosen is not None and entering:  # as many enter as the block has
            first = hidden.shape[1] - entering if self.position == "last" else prefix
            tokens = tokens.where(self.chosen_size(0) > 0, hidden[:, first : first + entering])
        clean = self.strip(hidden, prefix, entering)
        if self.position == "last":
            return torch.cat([clean, tokens], dim=1)
        return torch.cat([clean[:, :prefix], tokens, clean[:, prefix:]], dim=1)

    def strip(self, hidden: torch.Tensor, prefix: int, count: int) -> torch.Tensor:
        """Take ``count`` tokens out of ``hidden`` (B, T, D)."""
        if not count:
            return hidden
        if self.position == "last":
            return hidden[:, :-count]
        return torch.cat([hidden[:, :prefix], hidden[:, prefix + count :]], dim=1)

    def grow_mask(self, mask: torch.Tensor, prefix: int) -> torch.Tensor:
        """Let every query see the tokens, and the tokens see what CLS sees.

        ``mask`` is (B, T) or (B, 1, T or 1, T), boolean or integer (True: visible) or additive (0: visible).
        """
        count = self.passing
        visible = 0 if mask.is_floating_point() and mask.dim() == 4 else 1
        at = mask.shape[-1] if self.position == "last" else prefix
        mask = torch.cat([mask[..., :at], mask.new_full((*mask.shape[:-1], count), visible), mask[..., at:]], dim=-1)
        if mask.dim() == 4 and mask.shape[-2] > 1:
            rows = mask[:, :, :1].expand(-1, -1, count, -1)
            mask = torch.cat([mask[:, :, :at], rows, mask[:, :, at:]], dim=2)
        return mask


def plan_streams(dims: list[int], past_depth: str) -> list[Stream]:
    """How many tokens enter and leave each block.

    A block's own tokens replace those that enter. What leaves is stripped, unless ``past_depth`` is ``"carry"`` and the
    next block has no tokens of its own.
    """
    streams, entering = [], 0
    for block, dim in enumerate(dims):
        runs_on = past_depth == "carry" and block + 1 < len(dims) and dims[block + 1] == 0
        leaving = (dim or entering) if runs_on else 0
        streams.append((entering, leaving))
        entering = leaving
    return streams


def insert_all(
    vpts: Sequence[TokenModule], hidden: torch.Tensor, prefix: int, batch: list[TokenModule] | None = None
) -> torch.Tensor:
    """Put a block's tokens into ``hidden`` (B, T, D), those of several adapters side by side in the order of ``vpts``."""
    ahead, behind = 0, sum(vpt.flow[0] for vpt in vpts if vpt.position == "last")
    for vpt in vpts:
        if vpt.position == "last":
            behind -= vpt.flow[0]  # tokens of later adapters, which entered
            hidden = _before(hidden, behind, lambda part, vpt=vpt: vpt.insert(part, prefix, batch))
        else:
            hidden = vpt.insert(hidden, prefix + ahead, batch)
            ahead += vpt.passing
    return hidden


def strip_all(vpts: Sequence[TokenModule], hidden: torch.Tensor, prefix: int) -> torch.Tensor:
    """Take the tokens that do not run on out of a block's output ``hidden`` (B, T, D)."""
    ahead = behind = 0
    for vpt in [vpt for vpt in vpts if vpt.position != "last"]:
        if vpt.flow[1]:
            ahead += vpt.passing
        else:
            hidden = vpt.strip(hidden, prefix + ahead, vpt.passing)
    for vpt in [vpt for vpt in reversed(vpts) if vpt.position == "last"]:
        if vpt.flow[1]:
            behind += vpt.passing
        else:
            hidden = _before(hidden, behind, lambda part, vpt=vpt: vpt.strip(part, prefix, vpt.passing))
    return hidden


def _before(hidden: torch.Tensor, count: int, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``hidden`` (B, T, D) with all but its last ``count`` tokens changed."""
    if not count:
        return change(hidden)
    return torch.cat([change(hidden[:, :-count]), hidden[:, -count:]], dim=1)


def insert_tokens(block: nn.Module, args: tuple, kwargs: dict[str, Any], *, site: str, prefix: int) -> Any:
    """Forward pre-hook of a block. A plain function that looks its layer up: a copied model finds its own weights."""
    layer = block.get_submodule(site)
    vpts = layer.token_modules()
    if FAST_CALL in kwargs or not vpts:
        return None
    if any(vpt.chosen is not None for vpt in vpts):
        raise RuntimeError(
            "while shapes are fixed, a model with VPT runs in `peft_noah.fast.fast_forward` alone, which is off for this model "
            "or call: its `reason` says why. Train without compiling, or remove the reason."
        )
    args, kwargs = list(args), dict(kwargs)
    # shape[0], not len: torch.export would take a length for a constant
    if args:
        args[0] = insert_all(vpts, args[0], prefix, layer.tokens_by_sample(args[0].shape[0]))
    else:
        hidden = kwargs["hidden_states"]
        kwargs["hidden_states"] = insert_all(vpts, hidden, prefix, layer.tokens_by_sample(hidden.shape[0]))
    for vpt in vpts:
        if len(args) > 1 and args[1] is not None:
            args[1] = vpt.grow_mask(args[1], prefix)
        for name in ("attention_mask", "relative_position_bias"):  # the latter of data2vec, shared by all blocks
            if kwargs.get(name) is not None:
                kwargs[name] = vpt.grow_mask(kwargs[name], prefix)
    return tuple(args), kwargs


def strip_tokens(block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any, *, site: str, prefix: int) -> Any:
    """Forward hook of a block: takes out the tokens that do not run on."""
    vpts = block.get_submodule(site).token_modules()
    if FAST_CALL in kwargs or all(vpt.flow[1] for vpt in vpts):
        return None
    if isinstance(output, torch.Tensor):
        return strip_all(vpts, output, prefix)
    return (strip_all(vpts, output[0], prefix), *output[1:])


def _without_tokens(
    bias: nn.Module, args: tuple, kwargs: dict[str, Any], *, block: nn.Module, site: str, prefix: int
) -> Any:
    """Forward pre-hook of a block's position bias: as many tokens as the image has; a copied block comes with its copy."""
    count = sum(vpt.passing for vpt in block.get_submodule(site).token_modules())
    return (args, {**kwargs, "dim_size": kwargs["dim_size"] - count}) if kwargs.get("dim_size") else None


def _grow_bias(
    bias: nn.Module, args: tuple, output: torch.Tensor, *, block: nn.Module, site: str, prefix: int
) -> torch.Tensor:
    """Forward hook of a block's position bias (1, heads, T, T): tokens have no place, so no bias."""
    for vpt in block.get_submodule(site).token_modules():
        output = vpt.grow_mask(output, prefix)
    return output
