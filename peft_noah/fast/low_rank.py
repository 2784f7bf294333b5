"""Linears with their adapters, LoRA's updates in the same pass as the frozen product."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence

import torch
from torch import nn

from peft_noah.fast.packed import FrozenLinears, LowRank, is_frozen_linear
from peft_noah.tuner.layer import NoahLayer, NoahLinear
from peft_noah.tuner.prompts import PromptModule


class LowRankLinear(NoahLinear):
    """A wrapped Linear, for the time in which ``noah_packed`` keeps its weight in another layout."""

    noah_packed: FrozenLinears | None = None

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """``x`` (B, T, in_features) to (B, T, out_features)."""
        store, leaf = self.noah_packed, frozen_leaf(self)
        if store is None or leaf is None or torch.compiler.is_compiling() or not store.packs(x, leaf):
            return super().forward(x, *args, **kwargs)
        (y,) = adapted_linears(store, x, [self], (leaf,))
        return y


def frozen_leaf(site: nn.Module) -> nn.Linear | None:
    """The frozen Linear of a wrapped or bare one, where no adapter is merged into it."""
    leaf = site.base_layer if isinstance(site, NoahLayer) and not site.merged else site
    return leaf if is_frozen_linear(leaf) else None


def adapted(site: nn.Module, x: torch.Tensor, y: torch.Tensor, done: Container[PromptModule] = ()) -> torch.Tensor:
    """What the active adapters of ``site`` but those ``done`` make of its leaf's output ``y`` for an input ``x``."""
    return site.adapt(x, y, done) if isinstance(site, NoahLayer) else y


def adapted_linears(
    linears: FrozenLinears, x: torch.Tensor, sites: Sequence[nn.Module], leaves: tuple[nn.Linear, ...]
) -> tuple[torch.Tensor, ...]:
    """Outputs of ``sites``, wrapped or bare Linears, for one input ``x`` (B, T, in).

    Args:
        linears: packs the weights of ``leaves``, the frozen Linears of ``sites``.
    """
    x = x.to(linears.dtype_for(x, leaves[0].weight))  # once for all
    added = [_low_rank(site, x) for site in sites]
    sizes = [leaf.out_features for leaf in leaves]
    starts = [0, *itertools.accumulate(sizes)]
    updates = [LowRank(start, *pair) for start, pairs in zip(starts, added, strict=False) for pair in pairs.values()]
    outputs = linears(x, leaves, updates=updates).split(sizes, -1)
    return tuple(adapted(site, x, y, done) for site, y, done in zip(sites, outputs, added, strict=True))


def _low_rank(site: nn.Module, x: torch.Tensor) -> dict[PromptModule, tuple[torch.Tensor, torch.Tensor]]:
    """Factors by active module of a site, of the first ones that only add updates of low rank, in the dtype of ``x``."""
    found: dict[PromptModule, tuple[torch.Tensor, torch.Tensor]] = {}
    if not isinstance(site, NoahLayer) or site.batch_adapters is not None or (site.training and site.drop_path_rates):
        return found
    autocast = torch.is_autocast_enabled(x.device.type)
    for module in site.active_modules():
        factors = module.factors() if module.is_linear and not module.is_random else None
        if factors is None or not (autocast or all(factor.dtype == x.dtype for factor in factors)):
            break
        found[module] = factors
    return found
