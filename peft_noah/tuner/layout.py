"""Where the blocks of a model are, and which places for prompt modules are in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from peft_noah.tuner.backbones import BACKBONES, Backbone, find_backbone, has_module
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import find_prompt_module, site_of


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
        return [block for block in range(len(self.blocks)) if is_targeted(row) or self.paths(row, block)]

    def can_carry(self, row: str) -> bool:
        """Whether each block of this model has a place for a row's modules."""
        return is_targeted(row) or (len(self.places(row)) == len(self.blocks) and not self.refuses(row))

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


def is_targeted(row: str) -> bool:
    """Whether ``target_modules`` says where the modules of a row go."""
    return find_prompt_module(row).site == "projection" and site_of(row) is None
