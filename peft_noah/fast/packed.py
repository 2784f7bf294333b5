"""Frozen Linears, several at a time, on weights that are laid out or cast once instead of at every call.

On a CPU, oneDNN's matrix kernels read weights in blocks of their own; a plain Linear rearranges them at every call. Under
autocast, a frozen weight is cast at every call, since only weights that are trained are cached. `FrozenLinears` keeps
both: forward weights (out, in), and where gradients run through in bfloat16, transposed ones (in, out). They are copies:
as much memory again as the frozen weights take in float32, whose gradients run through the weights themselves in all but
small models. Of weights that a choice of subnet changes (merged ones), those of the last choice are kept.

Updates of low rank, LoRA's, are added to a packed product's output and to its gradient in place. They are bound by memory, not
by arithmetic, so what counts is how often they pass over large tensors: all that read one input share one product with
their ``down``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.fast.hardware import has_mkl_for_intel, has_packed_kernels

#: MKL, behind PyTorch's own float32 products, is made for Intel's processors: beside oneDNN on packed weights it is
#: 6 % behind at a width of 128 and ahead from this one on, without a copy of them
MKL_IS_FASTER_FROM = 768
_MKL_IS_FAST = has_mkl_for_intel()

#: what makes a kept copy stale: storage and version of each weight it was made from, and whatever the caller adds
Stamp = tuple


def is_frozen_linear(leaf: nn.Module) -> bool:
    """Whether a leaf is an ordinary Linear (not quantised, sharded or replaced) that is not trained."""
    if type(leaf) not in (nn.Linear, PackedLinear) or "forward" in leaf.__dict__:
        return False
    weight = leaf.weight
    plain = type(weight) is nn.Parameter and weight.is_floating_point()
    plain = plain and (torch.compiler.is_compiling() or not weight.is_inference())  # a compiler cannot ask that
    return plain and not weight.requires_grad and (leaf.bias is None or not leaf.bias.requires_grad)


def can_pack(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for a weight on this device, cast to ``dtype``, and there are no faster ones."""
    if weight.device.type != "cpu" or not has_packed_kernels(dtype):
        return False
    return dtype != torch.float32 or not (_MKL_IS_FAST and min(weight.shape) >= MKL_IS_FASTER_FROM)


class LowRank(NamedTuple):
    """An update ``(x D^T) U`` of columns ``start`` to ``start + out`` of a product's output: ``down`` (r, in), ``up`` (r, out)."""

    start: int
    down: torch.Tensor
    up: torch.Tensor


@dataclass
class _Entry:
    """A weight (out, in), as it is or in oneDNN's layout.

    ``parts`` are the weights it was stacked from, where gradients run through these: a second copy would save an eighth of
    that product's time. Else ``transposed`` is there once a gradient has run through.
    """

    stamp: Stamp
    weight: torch.Tensor
    bias: torch.Tensor | None
    packed: bool
    parts: tuple[torch.Tensor, ...] = ()
    transposed: _Entry | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def linear(self, x: torch.Tensor, updates: Sequence[LowRank] = ()) -> torch.Tensor:
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        if updates:
            downs = torch.cat([update.down for update in updates]).to(x.dtype)
            return _Packed.apply(x, self, [u.start for u in updates], downs, *(u.up.to(x.dtype) for u in updates))
        return _Packed.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.product(x)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")

    def through(self, grad: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The gradient ``g W`` of the input, a new tensor, from that of the output."""
        return _through(grad, parts) if parts else self.transpose().linear(grad)

    def transpose(self) -> _Entry:
        if self.transposed is None:
            weight = _pack(self.weight.to_dense().t())
            without_bias = _Entry(self.stamp, self.weight, None, packed=True)
            self.transposed = without_bias.transposed = _Entry(self.stamp, weight, None, True, transposed=without_bias)
        return self.transposed


class _Packed(torch.autograd.Function):
    """``y = x W^T + b`` of a frozen, packed weight, then ``y[:, columns] += (x D^T) U`` for each update of low rank.

    W and b get no gradients; x gets ``g W + (g U^T) D``.
    """

    @staticmethod
    def forward(ctx, x, entry: _Entry, starts: Sequence[int] = (), downs=None, *ups: torch.Tensor) -> torch.Tensor:
        ctx.entry, ctx.columns = entry, [(start, up.shape[1]) for start, up in zip(starts, ups, strict=True)]
        y = entry.product(x)
        if not ups:
            ctx.save_for_backward(*entry.parts)
            return y
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        hidden = rows @ downs.T  # (rows, sum of ranks)
        for part, up, columns in zip(hidden.split([len(up) for up in ups], 1), ups, ctx.columns, strict=True):
            out.narrow(1, *columns).addmm_(part, up)
        ctx.hidden = hidden
        ctx.save_for_backward(x, downs, *ups, *entry.parts)
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if not ctx.columns:
            return ctx.entry.through(grad, ctx.saved_tensors), None
        x, downs, *rest = ctx.saved_tensors
        ups, parts = rest[: len(ctx.columns)], rest[len(ctx.columns) :]
        rows, again = x.reshape(-1, x.shape[-1]), torch.is_grad_enabled()  # for gradients of gradients
        hidden = rows @ downs.T if again else ctx.hidden
        grads = [grad.reshape(-1, grad.shape[-1]).narrow(1, *columns) for columns in ctx.columns]
        inner = torch.cat([g @ up.T for g, up in zip(grads, ups, strict=True)], 1)  # (rows, sum of ranks)
        x_grad = None
        if ctx.needs_input_grad[0]:
            through = ctx.entry.through(grad, parts).reshape(rows.shape)
            x_grad = (through.addmm if again else through.addmm_)(inner, downs).view(x.shape)
        hiddens = hidden.split([len(up) for up in ups], 1)
        return x_grad, None, None, inner.T @ rows, *(h.T @ g for h, g in zip(hiddens, grads, strict=True))


def _through(grad: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """``g W`` for weights that lie side by side: ``grad`` (..., sum of out) to (..., in)."""
    sizes = [len(weight) for weight in weights]
    (first, weight), *others = zip(grad.reshape(-1, sum(sizes)).split(sizes, -1), weights, strict=True)
    y = first @ weight
    for part, weight in others:
        y = torch.addmm(y, part, weight)
    return y.reshape(*grad.shape[:-1], -1)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


class FrozenLinears:
    """The kept weights of a model, made when first asked for and again when a weight has changed.

    Args:
        pack: use oneDNN's layout where there is one; False: only stack and cast. May be set at any time; what is kept
            stays as it is.
        transpose: in float32 too, keep transposed weights for gradients.
    """

    def __init__(self, pack: bool = True, transpose: bool = True) -> None:
        self.pack, self.transpose = pack, transpose
        self._entries: dict[tuple, _Entry] = {}  # by leaves, dtype, and whether other weights take their place

    def __iter__(self) -> Iterator[_Entry]:
        """What is kept now."""
        return iter(self._entries.values())

    def __reduce__(self):
        return FrozenLinears, (self.pack, self.transpose)  # a copy of the model starts with nothing kept

    def __call__(
        self,
        x: torch.Tensor,
        leaves: tuple[nn.Linear, ...],
        version: Stamp = (),
        weights: Callable[[], list[torch.Tensor]] | None = None,
        updates: Sequence[LowRank] = (),
    ) -> torch.Tensor:
        """Outputs of ``leaves`` for one input side by side: ``x`` (..., in) to (..., sum of their outputs).

        Args:
            version: what ``weights`` depend on besides the leaves' own.
            weights: the weights (out, in) to use in place of the leaves' own, such as merged ones.
            updates: what to add to the outputs; only where the leaves' weights are packed, see `packs`.
        """
        dtype = self.dtype_for(x, leaves[0].weight)
        own = (weight for leaf in leaves for weight in (leaf.weight, leaf.bias) if weight is not None)
        stamp = (tuple((weight.data_ptr(), weight._version) for weight in own), version)
        key = (tuple(map(id, leaves)), dtype, weights is not None)
        entry = self._entries.get(key)
        # one that was kept while nothing was packed has no place for updates
        if entry is None or entry.stamp != stamp or (updates and not entry.packed):
            entry = self._entries[key] = self._make(stamp, leaves, dtype, weights)
        return entry.linear(x.to(dtype), updates)

    def packs(self, x: torch.Tensor, leaf: nn.Linear) -> bool:
        """Whether the weight of ``leaf`` is packed for an input ``x``."""
        return self.pack and can_pack(leaf.weight, self.dtype_for(x, leaf.weight))

    @staticmethod
    def dtype_for(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
        """The dtype in which a plain Linear would compute now."""
        kind = x.device.type
        if weight.dtype == torch.float64 or not torch.is_autocast_enabled(kind):  # autocast leaves float64 alone
            return weight.dtype
        return torch.get_autocast_dtype(kind)

    def _make(self, stamp: Stamp, leaves: tuple[nn.Linear, ...], dtype: torch.dtype, other: Callable | None) -> _Entry:
        weights = [leaf.weight.detach() for leaf in leaves] if other is None else other()
        with torch.inference_mode(False), torch.no_grad():
            weight = torch.cat(weights) if len(weights) > 1 else weights[0].detach()
            weight, bias = weight.to(dtype), _stacked_bias(leaves)
            bias = None if bias is None else bias.to(dtype)
        if not (self.pack and can_pack(leaves[0].weight, dtype)):
            return _Entry(stamp, weight, bias, packed=False)
        single = other is None and dtype == torch.float32 and not self.transpose
        return _Entry(stamp, _pack(weight), bias, packed=True, parts=tuple(weights) if single else ())


def stacked_linear(x: torch.Tensor, weights: list[torch.Tensor], leaves: tuple[nn.Linear, ...]) -> torch.Tensor:
    """The same as `FrozenLinears` on ``weights`` with the biases of ``leaves``, with nothing kept."""
    return F.linear(x, torch.cat(weights), _stacked_bias(leaves))


def _stacked_bias(leaves: tuple[nn.Linear, ...]) -> torch.Tensor | None:
    if all(leaf.bias is None for leaf in leaves):
        return None
    biases = [leaf.weight.new_zeros(leaf.out_features) if leaf.bias is None else leaf.bias.detach() for leaf in leaves]
    return torch.cat(biases) if len(biases) > 1 else biases[0]


class PackedLinear(nn.Linear):
    """An ordinary Linear, for the time in which ``noah_packed`` keeps its weight in another layout."""

    noah_packed: FrozenLinears | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (..., in) to (..., out)."""
        store = self.noah_packed
        if (
            store is None or self.weight.requires_grad or torch.compiler.is_compiling()
        ):  # a compiler has ways of its own
            return super().forward(x)
        return store(x, (self,))
