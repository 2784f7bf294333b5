"""One block of the fast forward, computed from the block's own modules; `fast` says when."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peft_noah.fast.hardware import has_amx
from peft_noah.fast.low_rank import adapted, adapted_linears, frozen_leaf
from peft_noah.fast.packed import FrozenLinears, Stamp, stacked_linear
from peft_noah.tuner.backbones import Backbone, has_module
from peft_noah.tuner.layer import NoahLayer
from peft_noah.tuner.prompts import PromptModule
from peft_noah.tuner.prompts.tokens import FAST_CALL, insert_all, insert_tokens, strip_all, strip_tokens

#: where bfloat16 is multiplied in tiles, PyTorch's fused attention does so too, in its forward alone
_HAS_AMX = has_amx()

#: devices on which a compiled model multiplies query, key and value apart: stacking costs a CPU more than it saves
_COMPILED_APART = ("cpu",)

Rows = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FastOptions:
    """Which of the gains to take; all are exact but for the order of sums.

    Args:
        prompts_as_keys: VPT's tokens as keys and values only.
        head_tokens_only: in the last block, only the tokens that the classifier reads.
        fuse_projections: one matrix product for query, key and value.
        pack_weights: frozen weights in oneDNN's layout, cast once; these copies take as much memory again as the weights
            in float32. With gradient checkpointing they are not made while training, nor in float32 where PyTorch's
            own product is as fast: wide ones on an Intel.
        merge_lora: LoRA added to copies of the weights, in evaluation mode without gradients; in a model compiled for
            another device than the CPU, in training too, where no dropout comes between.
        patches_by_product: the patch embedding as a matrix product instead of a convolution.
    """

    prompts_as_keys: bool = True
    head_tokens_only: bool = True
    fuse_projections: bool = True
    pack_weights: bool = True
    merge_lora: bool = True
    patches_by_product: bool = True


@dataclass(frozen=True)
class FastCall:
    """What the blocks must know of one call of the model.

    Args:
        reads: number of leading tokens that are read from the last block; None: all.
        unmasked: whether a mask that reaches a block hides nothing: transformers makes such ones for some tracers.
    """

    reads: int | None
    unmasked: bool = False


class FastBlock:
    """Mixed into a block's class for the time in which ``noah_fast`` says how to run it."""

    noah_fast: BlockPlan | None = None

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        """``hidden_states`` (B, T, D) to (B, T', D), T' smaller where fewer tokens are read."""
        call = kwargs.pop(FAST_CALL, None)
        if call is None or self.noah_fast is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        if attention_mask is not None and not call.unmasked:
            plain = super().forward
            return self.noah_fast.run_masked(self, plain, (hidden_states, attention_mask), kwargs)
        return self.noah_fast.run(self, hidden_states, attention_mask, call, kwargs)


@functools.cache
def fast_class(cls: type) -> type:
    """A block's class with `FastBlock` in front."""
    return type(f"Fast{cls.__name__}", (FastBlock, cls), {"__module__": __name__})


def plain_class(cls: type) -> type:
    """The class that a block had before; a copy made inside a context has kept the fast one."""
    return cls.__mro__[2] if issubclass(cls, FastBlock) else cls


class _Entered(NamedTuple):
    """A block's input: the ``stream`` (B, T, D), and what is special about some of its tokens.

    ``keys`` (1 or B, m, D) are VPT's tokens that only serve as keys and values. ``rows`` selects the tokens of the stream
    that the block computes, ``after`` those that it passes on; None: all. ``visible`` (1, 1, 1, T + m) says which of all
    keys are seen; None: all.
    """

    stream: torch.Tensor
    keys: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    rows: Rows | None = None
    after: Rows | None = None


@dataclass
class BlockPlan:
    """How one block runs."""

    options: FastOptions
    linears: FrozenLinears
    backbone: Backbone
    last: bool

    def __reduce__(self):
        return type(None), ()  # a copy of the model, made inside a context, is a plain one

    def run(
        self,
        block: nn.Module,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        call: FastCall,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """The block's output for ``hidden`` (B, T, D)."""
        part, layout = block.get_submodule, self.backbone
        norm = part(layout.norm)
        entered = self._enter(block, norm, hidden, call)
        stream, keys, visible, rows, after = entered
        mask = visible
        if layout.position_bias is not None:
            mask = self._biased(block, norm, entered, attention_mask, kwargs)
        y = self._attend(block, norm(stream), None if keys is None else norm(keys), mask, rows, kwargs)
        x = _add(self._end(block, y, 0), stream if rows is None else rows(stream))
        parts = (layout.mlp,) if isinstance(layout.mlp, str) else layout.mlp
        y = part(layout.norm_after)(x)
        for name in parts:
            y = part(name)(y)
        if not layout.mlp_output.startswith(f"{parts[-1]}."):
            y = part(layout.mlp_output)(y)
        x = _add(self._end(block, y, 1), x)
        return x if after is None else after(x)

    def _end(self, block: nn.Module, y: torch.Tensor, branch: int) -> torch.Tensor:
        """What the block makes of a branch before it adds it."""
        if self.backbone.scales is not None:
            y = getattr(block, self.backbone.scales[branch]) * y
        for name in self.backbone.drops:
            y = block.get_submodule(name)(y)
        return y

    def _biased(
        self,
        block: nn.Module,
        norm: nn.Module,
        entered: _Entered,
        shared: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """The bias of each pair of a query and a key, (1, heads, queries, keys), with what is not visible; None: there is none."""
        resolution, _ = kwargs.pop("resolution", None), kwargs.pop("interpolate_pos_encoding", None)
        # what arrives as a mask hides nothing: it is a bias that all blocks share
        bias = shared if shared is not None and shared.is_floating_point() else None
        if has_module(block, self.backbone.position_bias):
            window = tuple(side // block.patch_size for side in resolution)
            own = block.get_submodule(self.backbone.position_bias).forward(window)  # without the hooks of tokens
            bias = own if bias is None else own + bias
        if bias is None:
            return entered.visible
        if entered.keys is not None:
            bias = nn.functional.pad(bias, (0, entered.keys.shape[1]))
        elif entered.stream.shape[1] > bias.shape[-1]:
            for source in norm.token_modules():
                bias = source.grow_mask(bias, self.backbone.prefix_tokens)
        if entered.rows is not None:
            bias = entered.rows(bias[0])[None]
        return bias if entered.visible is None else bias.masked_fill(~entered.visible, -torch.inf)

    def run_masked(self, block: nn.Module, plain: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """The plain block, with a mask that grows with VPT's tokens; here their hooks have left them to us."""
        site = {"site": self.backbone.norm, "prefix": self.backbone.prefix_tokens}
        layer = block.get_submodule(self.backbone.norm)
        if not isinstance(layer, NoahLayer):
            return plain(*args, **kwargs)
        args, kwargs = insert_tokens(block, args, kwargs, **site) or (args, kwargs)
        output = plain(*args, **kwargs)
        stripped = strip_tokens(block, args, kwargs, output, **site)
        return output if stripped is None else stripped

    def _enter(self, block: nn.Module, norm: nn.Module, hidden: torch.Tensor, call: FastCall) -> _Entered:
        reads = call.reads if self.last else None
        first = None if reads is None else lambda x: x[:, :reads]
        sources = norm.token_modules() if isinstance(norm, NoahLayer) else []
        if not sources:
            return _Entered(hidden, rows=first)
        prefix = self.backbone.prefix_tokens
        if len(sources) > 1:  # tokens of several adapters are tokens like all others
            leave = functools.partial(strip_all, sources, prefix=prefix)
            stream = insert_all(sources, hidden, prefix)
            return _Entered(stream, rows=first, after=leave if first is None else None)
        (source,), (entering, leaving) = sources, sources[0].flow
        strip = functools.partial(source.strip, prefix=prefix, count=source.passing)
        either = source.chosen is not None and entering > 0  # own tokens or an earlier block's, by what is chosen
        if leaving or either or not self.options.prompts_as_keys:
            stream = source.insert(hidden, prefix)
            at = stream.shape[1] - source.passing if source.position == "last" else prefix
            visible = source.visible(stream.shape[1], at)
            if leaving:  # the next block reads them: they are tokens like all others
                return _Entered(stream, visible=visible)
            return _Entered(stream, visible=visible, rows=first, after=strip if first is None else None)
        if not source.live:  # those of an earlier block leave here
            return _Entered(hidden, rows=first or strip)
        # one set of keys and values serves all samples, unless dropout makes them differ
        sites = (norm, *(block.get_submodule(path) for path in self._projections()[1:]))
        tokens = source.own_tokens(len(hidden) if any(map(_is_random, sites)) else 1)
        stream = source.strip(hidden, prefix, entering)
        visible = source.visible(stream.shape[1] + source.live, stream.shape[1])
        return _Entered(stream, tokens.to(hidden.dtype), visible, rows=first)

    def _projections(self) -> list[str]:
        return [self.backbone.projections[name] for name in ("query", "key", "value")]

    def _attend(
        self,
        block: nn.Module,
        h: torch.Tensor,
        keys: torch.Tensor | None,
        visible: torch.Tensor | None,
        rows: Rows | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Attention of ``rows`` of ``h`` (B, T, D) to all of it and to ``keys`` (1 or B, m, D), with its output's leaf."""
        attention = block.get_submodule(self.backbone.attention)
        sites = [block.get_submodule(path) for path in self._projections()]
        if rows is None:
            query, key, value = self._project(h, sites)
        else:
            (query,), (key, value) = self._project(rows(h), sites[:1]), self._project(h, sites[1:])
        more = ()
        if keys is not None:
            # with a query of no use where three weights are stacked: a fourth copy of them would cost more
            more = self._project(keys, sites if rows is None else sites[1:])[-2:]
        heads = [x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in (query, key, value, *more)]
        if self.backbone.rotary:
            heads[:2] = _rotated(attention, *heads[:2], kwargs.pop("position_embeddings"))
        heads, more = heads[:3], [x.expand(len(h), -1, -1, -1) for x in heads[3:]]
        heads[1:] = [torch.cat(pair, 2) for pair in zip(heads[1:], more, strict=True)] if more else heads[1:]
        name = attention.config._attn_implementation
        by_products = name == "sdpa" and visible is None and _fused_is_slow(heads)
        function = matmul_attention if by_products else ALL_ATTENTION_FUNCTIONS[name]
        dropout = _dropout(attention) if attention.training else 0.0
        y, _ = function(attention, *heads, visible, dropout=dropout, scaling=_scaling(attention), **kwargs)
        y = block.get_submodule(self.backbone.linears["output"])(y.flatten(2))
        if not self.backbone.attention_output.startswith(f"{self.backbone.attention}."):
            y = block.get_submodule(self.backbone.attention_output)(y)
        return y

    def _project(self, x: torch.Tensor, sites: list[nn.Module]) -> tuple[torch.Tensor, ...]:
        """Outputs of some of the projections for one input ``x`` (B, T, D)."""
        leaves = tuple(map(frozen_leaf, sites)) if self.options.fuse_projections else (None,)
        compiling = torch.compiler.is_compiling()
        if None in leaves or (compiling and x.device.type in _COMPILED_APART):
            return tuple(site(x) for site in sites)
        sizes = [leaf.out_features for leaf in leaves]
        if compiling:  # the compiler stacks, and adds LoRA's updates, while it casts
            merged = self.options.merge_lora and all(map(_is_linear_now, sites))
            weights = [_merged(site) for site in sites] if merged else [leaf.weight for leaf in leaves]
            outputs = stacked_linear(x, weights, leaves).split(sizes, -1)
            if merged:
                return outputs
            return tuple(adapted(site, x, y) for site, y in zip(sites, outputs, strict=True))
        updates = self._updates(sites)
        if updates is not None:
            return self.linears(x, leaves, updates, lambda: [_merged(site) for site in sites]).split(sizes, -1)
        if self.linears.packs(x, leaves[0]):
            return adapted_linears(self.linears, x, sites, leaves)
        x = x.to(self.linears.dtype_for(x, leaves[0].weight))  # cast once for all
        outputs = self.linears(x, leaves).split(sizes, -1)
        return tuple(adapted(site, x, y) for site, y in zip(sites, outputs, strict=True))

    def _updates(self, sites: list[nn.Module]) -> Stamp | None:
        """What the merged weights of ``sites`` depend on besides the leaves; None where nothing is to be merged."""
        if not self.options.merge_lora or torch.is_grad_enabled() or sites[0].training:
            return None
        modules = [module for site in sites for module in _active_modules(site)]
        if not modules or not all(module.is_linear for module in modules):
            return None
        return tuple((id(module), module.dim, module.versions()) for module in modules)


def _rotated(
    attention: nn.Module, query: torch.Tensor, key: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys (B, H, T, d) as the family rotates them, those of the last tokens; there may be fewer queries."""
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    if query.shape == key.shape:
        return rotate(query, key, *positions)
    return rotate(query, query, *positions)[0], rotate(key, key, *positions)[1]


def _scaling(attention: nn.Module) -> float:
    return attention.scaling if hasattr(attention, "scaling") else attention.scale


def _dropout(attention: nn.Module) -> float:
    return attention.attention_dropout if hasattr(attention, "attention_dropout") else attention.dropout


def _add(branch: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    if branch.dtype == stream.dtype or torch.is_grad_enabled():
        return branch + stream
    return branch.to(stream.dtype).add_(stream)  # PyTorch adds two dtypes more slowly than it casts one and adds


def _fused_is_slow(heads: list[torch.Tensor]) -> bool:
    """Whether `matmul_attention` takes less time than PyTorch's fused attention."""
    if heads[0].dtype != torch.bfloat16 or heads[0].device.type != "cpu":
        return False
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in heads)
    return gradients or not _HAS_AMX


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention as two matrix products, called as transformers calls its attention functions, without a mask.

    On a CPU in bfloat16, forward and backward take a quarter to a half of the time of PyTorch's fused attention, whose
    scores are float32; here they are rounded to bfloat16, as all else is. With AMX the fused forward alone is faster.
    ``query`` (B, H, T, d), ``key`` and ``value`` (B, H, S, d) to (B, T, H, d).
    """
    flat = [x.flatten(0, 1) for x in (query, key.transpose(-2, -1), value)]
    scores = torch.baddbmm(query.new_zeros(1), flat[0], flat[1], beta=0, alpha=scaling)
    # PyTorch's bfloat16 softmax goes one by one through what does not fill a vector of 32, so short rows take float32's
    short = scores.dtype == torch.bfloat16 and scores.shape[-1] < 32
    weights = scores.softmax(-1, dtype=torch.float32 if short else None).to(scores.dtype)
    y = torch.bmm(nn.functional.dropout(weights, dropout), flat[2])
    return y.unflatten(0, query.shape[:2]).transpose(1, 2), None


def _active_modules(site: nn.Module) -> list[PromptModule]:
    return site.active_modules() if isinstance(site, NoahLayer) else []


def _is_linear_now(site: nn.Module) -> bool:
    """Whether all that a projection's adapters do in this call, their gradients too, is a sum with its weight."""
    if not isinstance(site, NoahLayer) or site.disable_adapters:
        return True
    if site.batch_adapters is not None or (site.training and site.drop_path_rates):
        return False
    modules = [module for name in site.active_adapters for module in site.prompt_modules(name)]
    return all(module.is_linear and module.live and not module.is_random for module in modules)


def _merged(site: nn.Module) -> torch.Tensor:
    """A projection's weight with LoRA's updates, in its own dtype; gradients reach them."""
    weight = frozen_leaf(site).weight
    for module in _active_modules(site):
        weight = (weight + module.delta_weight()).to(weight.dtype)
    return weight


def _is_random(site: nn.Module) -> bool:
    if isinstance(site, NoahLayer):
        return any(module.is_random for module in site.active_modules()) or _is_random(site.base_layer)
    return site.training and not isinstance(site, (nn.LayerNorm, nn.Linear))  # a layer of another tuner may draw
