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

from peft_noah.tuner.backbones import BACKBONES, Backbone, find_backbone, has_module, width_of
from peft_noah.tuner.config import NoahConfig
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


@dataclass(frozen=True)
class Layout:
    """Blocks of a model and, where its family is known, the sites in them.

    Blocks may differ: one may have experts where another has an MLP. A model of an unknown family counts as one block that
    holds nothing but the projections its user names.

    Args:
        backbone: the family's layout.
        blocks: names of the blocks.
        widths: of the stream in each block; no unit.
        linears: for each block, the path inside it of each Linear that the family names, by its site, such as ``fc1``.
        sites: for each block, paths inside it of the leaves of each other kind of site.
    """

    backbone: Backbone | None
    blocks: tuple[str, ...]
    widths: tuple[int, ...] = ()
    linears: tuple[Mapping[str, str], ...] = ({},)
    sites: tuple[Mapping[str, tuple[str, ...]], ...] = ({},)

    @classmethod
    def of(cls, model: nn.Module, model_type: str | None, config: NoahConfig) -> Layout:
        """Read a model's layout.

        Raises:
            ValueError: for an unknown family without ``target_modules``, or a known one whose blocks are not found.
        """
        if model_type not in BACKBONES and config.target_modules is not None:
            return cls(None, ("",))
        backbone = find_backbone(model_type, model)
        blocks = tuple(backbone.block_names(model))
        if not blocks:
            raise ValueError(
                f"model_type {model_type!r} should keep its blocks in {backbone.blocks!r}, but this model has none there. "
                "peft-noah needs transformers >= 5.18 for the built-in families; for a model of your own see "
                "examples/add_backbone.py."
            )
        modules = [model.get_submodule(name) for name in blocks]
        first = modules[0]
        needed = (backbone.attention_output, backbone.mlp_output)
        lacking = [path for path in needed if not any(has_module(module, path) for module in modules)]
        lacking += [backbone.norm] if not has_module(first, backbone.norm) else []
        if lacking:
            raise ValueError(
                f"the blocks of a {model_type!r} should have {', '.join(map(repr, lacking))}, but a {type(first).__name__} has "
                f"only {', '.join(name for name, _ in first.named_modules() if name)}. Describe a family of blocks of its own "
                "with register_backbone; examples/add_backbone.py shows how."
            )
        without = [index for index, module in enumerate(modules) if not has_module(module, backbone.norm)]
        if without:
            raise ValueError(
                f"there is no {backbone.norm!r} in {name_blocks(without)} of this {model_type!r}, as there is in others. Name a norm "
                "that all blocks have in its Backbone: widths are read from it, and tokens enter there."
            )
        sites = tuple(map(backbone.linear_sites, modules)), tuple(map(backbone.site_paths, modules))
        return cls(backbone, blocks, backbone.widths(model), *sites)

    @property
    def width(self) -> int | None:
        """Of the stream where it enters the first block."""
        return self.widths[0] if self.widths else None

    def block_of(self, key: str) -> int | None:
        """Index of the block that holds the leaf ``key``; None outside of all."""
        if self.backbone is None:
            return 0
        return next((i for i, name in enumerate(self.blocks) if key.startswith(name + ".")), None)

    def paths(self, row: str, block: int) -> tuple[str, ...]:
        """Paths inside a block of the leaves that carry a row; none where ``target_modules`` names them, or there are none."""
        if site_of(row) is not None:
            return tuple(path for site, path in self.linears[block].items() if site == site_of(row))
        return self.sites[block].get(find_prompt_module(row).site, ())

    def places(self, row: str) -> list[int]:
        """Indices of the blocks that have a place for a row's modules."""
        return [block for block in range(len(self.blocks)) if _is_targeted(row) or self.paths(row, block)]

    def can_carry(self, row: str) -> bool:
        """Whether each block of this model has a place for a row's modules."""
        return _is_targeted(row) or (len(self.places(row)) == len(self.blocks) and not self.refuses(row))

    def paths_by_site(self) -> dict[str, tuple[str, ...]]:
        """Paths inside blocks of each Linear that the family names, by its site; several where blocks differ."""
        found: dict[str, dict[str, None]] = {}
        for linears in self.linears:
            for site, path in linears.items():
                found.setdefault(site, {})[path] = None
        return {site: tuple(paths) for site, paths in found.items()}

    def refuses(self, row: str) -> str | None:
        """Why the family has no place for a row's modules, where there is more to say than that it lacks their site; else
        None."""
        if self.backbone is None:
            return None
        if find_prompt_module(row).site == "attention" and not self.places(row):
            return "the attention of this family is not computed by transformers' registry of attention functions"
        return self.backbone.no_tokens if find_prompt_module(row).adds_tokens else None


def name_blocks(blocks: Sequence[int]) -> str:
    """Blocks by their indices, in words."""
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def unwrap(module: nn.Module) -> nn.Module:
    """The leaf below all tuner layers."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def plan(model: nn.Module, config: NoahConfig, layout: Layout) -> dict[str, Placement]:
    """Placement by leaf name, for all leaves that an adapter touches.

    Raises:
        ValueError: if a named target is not a Linear, LoRA has a row but no target, or the dims ask for more weights
            than makes sense.
    """
    leaves: dict[str, dict] = {}
    rows = {name: row for name, row in config.architecture.items() if any(row)}
    targeted = {name: rows[name] for name in in_order(rows) if _is_targeted(name)}
    if targeted:
        _place_on_targets(leaves, model, config, layout, targeted)
    for name in in_order(rows):
        if name not in targeted:
            _place_at_site(leaves, model, config, layout, name)
    if config.drop_path and layout.backbone is not None:
        _place_drop_path(leaves, model, config, layout)
    _say_what_blocks_lack(config, layout, rows)
    placements = {key: Placement(**leaf) for key, leaf in leaves.items()}
    _check_size(placements, model, config)
    return placements


def _say_what_blocks_lack(config: NoahConfig, layout: Layout, rows: Mapping[str, Sequence[int]]) -> None:
    """Log what is placed in some blocks and cannot be in others, which have no such leaf."""
    if layout.backbone is None:
        return
    wanted = {name: [block for block, dim in enumerate(row) if dim] for name, row in rows.items()}
    for name in (name for name in rows if not _is_targeted(name)):
        found = {block: layout.paths(name, block) for block in wanted[name]}
        _say_lacking(name, dict.fromkeys(path for paths in found.values() for path in paths), found)
    if config.drop_path:
        ends = (layout.backbone.attention_output, layout.backbone.mlp_output)
        _say_lacking("drop_path", ends, {block: sites["branch"] for block, sites in enumerate(layout.sites)})
    targeted = [name for name in rows if _is_targeted(name)]
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


def _is_targeted(name: str) -> bool:
    return find_prompt_module(name).site == "projection" and site_of(name) is None


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


def _place_on_targets(
    leaves: dict, model: nn.Module, config: NoahConfig, layout: Layout, rows: Mapping[str, Sequence[int]]
) -> None:
    """Place modules, of which ``rows`` has the dims, on what ``target_modules`` names."""
    owners: dict[tuple[str, int], str] = {}
    for key, module in _outer_modules(model):
        block = layout.block_of(key)
        dims = {} if block is None else {name: row[block] for name, row in rows.items() if row[block]}
        if not dims or not _matches(config, key):
            continue
        if not _is_linear(unwrap(module)):
            raise ValueError(
                f"target module {key!r} is a {type(unwrap(module)).__name__}, but {' and '.join(dims)} can only be placed "
                "on a Linear. Name Linear layers in target_modules."
            )
        leaf = _leaf(leaves, key, block, model, layout)
        leaf["dims"].update(dims)
        for row in dims if _is_projection(layout.backbone, key) else ():
            if find_prompt_module(row).shares_weights(config) and owners.setdefault((row, block), key) != key:
                leaf["owners"][row] = owners[row, block]
    if leaves and isinstance(config.target_modules, (set, list)):
        names = {name for key, _ in _outer_modules(model) for name in _ends(key)}
        if unknown := sorted(set(config.target_modules) - names):
            logger.warning("target_modules names %s, and no module of this model is called so.", ", ".join(unknown))
    if not leaves:
        raise NoMatchingPeftModuleError(
            f"Target modules {config.target_modules} not found in the base model, so {' and '.join(rows)} cannot be "
            "placed. Check target_modules, exclude_modules, modules_to_save and layers_to_transform, or leave the row out."
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


def _place_at_site(leaves: dict, model: nn.Module, config: NoahConfig, layout: Layout, name: str) -> None:
    cls, runs_on = find_prompt_module(name), find_prompt_module(name).runs_on(config)
    for block, dim in enumerate(config.architecture[name]):
        for key in (f"{layout.blocks[block]}.{path}" for path in layout.paths(name, block)):
            if not (dim or runs_on) or _excluded(config, key):
                continue
            dims = _leaf(leaves, key, block, model, layout)["dims"]
            _check_alone(key, name, [row for row in dims if find_prompt_module(row) is cls])
            if cls.site == "projection" and not _is_linear(unwrap(model.get_submodule(key))):
                raise ValueError(
                    f"{key!r}, the {site_of(name)!r} of its family, is a {type(unwrap(model.get_submodule(key))).__name__}, "
                    f"but {name} can only be placed on a Linear. Leave the row out, or mend the family's Backbone."
                )
            dims[name] = dim


def _check_alone(key: str, name: str, others: Sequence[str]) -> None:
    """Refuse two rows of one kind of module on one leaf."""
    if others:
        raise ValueError(
            f"rows {others[0]!r} and {name!r} both place their module on {key!r}. Leave one of them out, or name only other "
            f"layers in target_modules, which says where {others[0]!r} goes."
        )


def _is_linear(leaf: nn.Module) -> bool:
    return hasattr(leaf, "in_features") and hasattr(leaf, "out_features")


def _place_drop_path(leaves: dict, model: nn.Module, config: NoahConfig, layout: Layout) -> None:
    last = max(1, len(layout.blocks) - 1)
    for block, name in enumerate(layout.blocks):
        for path in layout.sites[block]["branch"]:
            if not _excluded(config, f"{name}.{path}"):
                leaf = _leaf(leaves, f"{name}.{path}", block, model, layout)
                leaf["drop_path"] = config.drop_path * block / last


def _leaf(leaves: dict, key: str, block: int, model: nn.Module, layout: Layout) -> dict:
    """What is placed on a leaf so far."""
    if key not in leaves:
        leaf = unwrap(model.get_submodule(key))
        own = width_of(leaf) or (layout.widths[block] if layout.widths else None)
        inputs, outputs = _get_in_out_features(leaf) if _is_linear(leaf) else (own, own)
        leaves[key] = {"block": block, "in_features": inputs, "out_features": outputs, "dims": {}, "owners": {}}
    return leaves[key]
