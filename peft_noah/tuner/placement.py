"""Which prompt modules of an adapter sit on which leaf of a model: decided once, before the model is touched."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _get_in_out_features,
    check_target_module_exists,
)
from torch import nn

from peft_noah.tuner.backbones import Backbone, width_of
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.layout import Layout, is_targeted, name_blocks
from peft_noah.tuner.prompts import find_prompt_module, in_order, site_of

try:
    from peft.utils.error import NoMatchingPeftModuleError
except ImportError:  # peft 0.20 raises a plain ValueError, which the later class derives from
    NoMatchingPeftModuleError = ValueError

logger = logging.getLogger(__name__)

#: prompt parameters that any backbone may be given, however small it is: 64 MiB in float32
MIN_LIMIT = 2**24


@dataclass(frozen=True)
class Placement:
    """The prompt modules of one leaf.

    Args:
        block: index of the block that the leaf belongs to.
        in_features, out_features: widths of the leaf.
        dims: stored dim by row; a module of dim 0 only lets through what runs on from earlier blocks.
        owners: by row, the name of the leaf whose module lends weights to the one here.
        drop_path: rate of stochastic depth behind the leaf; a probability.
    """

    block: int
    in_features: int
    out_features: int
    dims: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    drop_path: float = 0.0


def unwrap(module: nn.Module) -> nn.Module:
    """The leaf below all tuner layers."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def plan(model: nn.Module, config: NoahConfig, layout: Layout) -> dict[str, Placement]:
    """Placement by leaf name, for all leaves that an adapter touches.

    Raises:
        ValueError: if a named target is not a Linear, LoRA has a row but no target, or the dims ask for more weights
            than makes sense.
    """
    leaves = _Leaves(model, config, layout)
    rows = {name: row for name, row in config.architecture.items() if any(row)}
    targeted = {name: rows[name] for name in in_order(rows) if is_targeted(name)}
    if targeted:
        leaves.place_on_targets(targeted)
    for name in in_order(rows):
        if name not in targeted:
            leaves.place_at_site(name)
    if config.drop_path and layout.backbone is not None:
        leaves.place_drop_path()
    _say_what_blocks_lack(config, layout, rows)
    placements = {key: Placement(**leaf) for key, leaf in leaves.found.items()}
    _check_size(placements, model, config)
    return placements


class _Leaves:
    """What is placed on each leaf so far.

    Attributes:
        found: fields of a `Placement` by the leaf's name.
    """

    def __init__(self, model: nn.Module, config: NoahConfig, layout: Layout) -> None:
        self.model, self.config, self.layout = model, config, layout
        self.found: dict[str, dict] = {}

    def place_on_targets(self, rows: Mapping[str, Sequence[int]]) -> None:
        """Place modules, of which ``rows`` has the dims, on what ``target_modules`` names."""
        owners: dict[tuple[str, int], str] = {}
        for key, module in _outer_modules(self.model):
            block = self.layout.block_of(key)
            dims = {} if block is None else {name: row[block] for name, row in rows.items() if row[block]}
            if not dims or not _matches(self.config, key):
                continue
            if not _is_linear(unwrap(module)):
                raise ValueError(
                    f"target module {key!r} is a {type(unwrap(module)).__name__}, but {' and '.join(dims)} can only be placed "
                    "on a Linear. Name Linear layers in target_modules."
                )
            leaf = self._leaf(key, block)
            leaf["dims"].update(dims)
            for row in dims if _is_projection(self.layout.backbone, key) else ():
                if find_prompt_module(row).shares_weights(self.config) and owners.setdefault((row, block), key) != key:
                    leaf["owners"][row] = owners[row, block]
        if self.found and isinstance(self.config.target_modules, (set, list)):
            names = {name for key, _ in _outer_modules(self.model) for name in _ends(key)}
            if unknown := sorted(set(self.config.target_modules) - names):
                logger.warning(
                    "target_modules names %s, and no module of this model is called so.", ", ".join(unknown)
                )
        if not self.found:
            raise NoMatchingPeftModuleError(
                f"Target modules {self.config.target_modules} not found in the base model, so {' and '.join(rows)} cannot be "
                "placed. Check target_modules, exclude_modules, modules_to_save and layers_to_transform, or leave the row out."
            )

    def place_at_site(self, name: str) -> None:
        """Place the modules of a row where its site is in each block."""
        cls, runs_on = find_prompt_module(name), find_prompt_module(name).runs_on(self.config)
        for block, dim in enumerate(self.config.architecture[name]):
            for key in (f"{self.layout.blocks[block]}.{path}" for path in self.layout.paths(name, block)):
                if not (dim or runs_on) or _excluded(self.config, key):
                    continue
                dims = self._leaf(key, block)["dims"]
                _check_alone(key, name, [row for row in dims if find_prompt_module(row) is cls])
                if cls.site == "projection" and not _is_linear(unwrap(self.model.get_submodule(key))):
                    raise ValueError(
                        f"{key!r}, the {site_of(name)!r} of its family, is a {type(unwrap(self.model.get_submodule(key))).__name__}, "
                        f"but {name} can only be placed on a Linear. Leave the row out, or mend the family's Backbone."
                    )
                dims[name] = dim

    def place_drop_path(self) -> None:
        """Place stochastic depth behind attention and MLP of each block, at a rate that grows from 0."""
        last = max(1, len(self.layout.blocks) - 1)
        for block, name in enumerate(self.layout.blocks):
            for path in self.layout.sites[block]["branch"]:
                if not _excluded(self.config, f"{name}.{path}"):
                    leaf = self._leaf(f"{name}.{path}", block)
                    leaf["drop_path"] = self.config.drop_path * block / last

    def _leaf(self, key: str, block: int) -> dict:
        """What is placed on a leaf so far."""
        if key not in self.found:
            leaf = unwrap(self.model.get_submodule(key))
            own = width_of(leaf) or (self.layout.widths[block] if self.layout.widths else None)
            inputs, outputs = _get_in_out_features(leaf) if _is_linear(leaf) else (own, own)
            self.found[key] = {
                "block": block,
                "in_features": inputs,
                "out_features": outputs,
                "dims": {},
                "owners": {},
            }
        return self.found[key]


def _say_what_blocks_lack(config: NoahConfig, layout: Layout, rows: Mapping[str, Sequence[int]]) -> None:
    """Log what is placed in some blocks and cannot be in others, which have no such leaf."""
    if layout.backbone is None:
        return
    wanted = {name: [block for block, dim in enumerate(row) if dim] for name, row in rows.items()}
    for name in (name for name in rows if not is_targeted(name)):
        found = {block: layout.paths(name, block) for block in wanted[name]}
        _say_lacking(name, dict.fromkeys(path for paths in found.values() for path in paths), found)
    if config.drop_path:
        ends = (layout.backbone.attention_output, layout.backbone.mlp_output)
        _say_lacking("drop_path", ends, {block: sites["branch"] for block, sites in enumerate(layout.sites)})
    targeted = [name for name in rows if is_targeted(name)]
    if not isinstance(config.target_modules, (set, list)) or config.layers_to_transform is not None:
        return  # whoever gives a pattern chooses among blocks by it
    for name in targeted:
        sites = [
            site
            for site, paths in layout.paths_by_site().items()
            if {*paths, *(path.rpartition(".")[2] for path in paths)} & set(config.target_modules)
        ]
        _say_lacking(name, sites, {block: layout.linears[block] for block in wanted[name]})


def _say_lacking(what: str, leaves: Iterable[str], found: Mapping[int, Container[str]]) -> None:
    for leaf in leaves:
        if without := [block for block, there in found.items() if leaf not in there]:
            if len(without) < len(found):
                logger.warning(
                    "%s: there is no %r in %s, as there is in others, and it is left out there.",
                    what,
                    leaf,
                    name_blocks(without),
                )


def _check_size(placements: Mapping[str, Placement], model: nn.Module, config: NoahConfig) -> None:
    """Refuse dims whose weights would dwarf the backbone, before a single one is allocated."""
    for row, dims in config.architecture.items():
        find_prompt_module(row).check_stored(max(dims))
    asked = sum(_count_stored(leaf, config) for leaf in placements.values())
    limit = max(MIN_LIMIT, sum(parameter.numel() for parameter in model.parameters()))
    if asked > limit:
        raise ValueError(
            f"this architecture stores about {asked:,} prompt parameters, more than the {limit:,} allowed: as many as "
            f"the backbone has, or {MIN_LIMIT:,} for a small one. Choose smaller dims."
        )


def _count_stored(placement: Placement, config: NoahConfig) -> int:
    """Prompt parameters of one leaf."""
    widths = placement.in_features, placement.out_features
    with torch.device("meta"):  # shapes alone: nothing is allocated, and no random number drawn
        return sum(
            find_prompt_module(row)(*widths, dim, placement.block, config).count(dim)
            for row, dim in placement.dims.items()
            if dim
        )


def _ends(key: str) -> Iterator[str]:
    """All that a name of ``target_modules`` may be to name the leaf ``key``."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _outer_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of ``model`` below itself but for those inside tuner layers, which are other adapters' own."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return ((key, module) for key, module in model.named_modules() if key and not key.startswith(inside))


def _is_projection(backbone: Backbone | None, key: str) -> bool:
    return backbone is not None and any(key.endswith(f".{path}") for path in backbone.projections.values())


def _matches(config: NoahConfig, key: str) -> bool:
    """Whether ``target_modules`` names the leaf, as it would for PEFT's LoRA."""
    result = check_target_module_exists(config, key)
    return bool(result) and not isinstance(result, _ExcludedModule)


def _excluded(config: NoahConfig, key: str) -> bool:
    return isinstance(check_target_module_exists(config, key), _ExcludedModule)


def _check_alone(key: str, name: str, others: Sequence[str]) -> None:
    """Refuse two rows of one kind of module on one leaf."""
    if others:
        raise ValueError(
            f"rows {others[0]!r} and {name!r} both place their module on {key!r}. Leave one of them out, or name only other "
            f"layers in target_modules, which says where {others[0]!r} goes."
        )


def _is_linear(leaf: nn.Module) -> bool:
    return hasattr(leaf, "in_features") and hasattr(leaf, "out_features")
