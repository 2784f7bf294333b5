"""What a config leaves to the model is filled in and checked, before the model is touched."""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.plugins import plugins_among
from peft_noah.search_space import MODULES as PAPER_MODULES
from peft_noah.search_space import SPACES, WIDE, SearchSpace
from peft_noah.tuner.backbones import Backbone, how_to_know
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.fingerprint import OtherBackboneWarning, fingerprint_backbone, same_backbone
from peft_noah.tuner.layout import Layout, name_blocks
from peft_noah.tuner.prompts import PROMPT_MODULES, check_row, find_prompt_module, site_of
from peft_noah.tuner.recipes import STRENGTH_WIDTH

logger = logging.getLogger(__name__)


def resolve_config(config: NoahConfig, layout: Layout, model: nn.Module, model_type: str | None) -> None:
    """Fill in what a config leaves to the model: targets, LoRA's scale, the classifier, the search space, the stored dims.

    Raises:
        ValueError: if the architecture or the search space does not fit the model.
    """
    if layout.backbone is not None:
        _resolve_targets(config, layout.paths_by_site(), layout.backbone.projections)
        _resolve_heads(config, layout.backbone, model)
        if layout.backbone.tokens_first:
            config.vpt_position = "after_cls"  # attention is the same in any order
    _maybe_include_all_linear_layers(config, model)
    _resolve_scale(config, layout, model_type)

    num_blocks = len(layout.blocks)
    if config.architecture is None:
        space = _search_space(config, layout)
        for row in [row for row in PAPER_MODULES if row not in space.dims and layout.refuses(row)]:
            if not isinstance(config.search_space, Mapping) and config.search_space != "wide":
                logger.warning("the supernet has no %s: %s.", row, layout.refuses(row))
        config.search_space, config.architecture = space.to_dict(), space.largest().to_dict()
    _check_placeable(Architecture(config.architecture), layout, model_type, model)
    config.plugins = plugins_among(config.architecture) or None
    _check_backbone(config, model, model_type, num_blocks, layout.width)


def _search_space(config: NoahConfig, layout: Layout) -> SearchSpace:
    """The search space for a model's blocks.

    A named space holds those of its own rows that the model can carry, whatever else is registered; a wide one also LoRA
    on each projection of a family that calls them otherwise.
    """
    num_blocks = len(layout.blocks)
    if not isinstance(config.search_space, Mapping):
        projections = () if layout.backbone is None else layout.backbone.projections
        wide = dict.fromkeys((*(f"lora_{site}" for site in projections), *WIDE))
        rows = wide if config.search_space == "wide" else PAPER_MODULES
        modules = [name for name in rows if _carries(layout, name)]
        return SPACES[config.search_space or "vtab"](num_blocks, modules=modules)
    space = SearchSpace.from_dict(config.search_space)
    if space.num_blocks != num_blocks:
        raise ValueError(
            f"the search space is for {space.num_blocks} blocks but this model has {num_blocks}. Build it for this "
            f"model, for instance SearchSpace.vtab({num_blocks})."
        )
    return space


def _carries(layout: Layout, row: str) -> bool:
    """Whether a named search space has a row in this model; it is said where only some blocks have a place for it."""
    carries = layout.can_carry(row)
    if not carries and not layout.refuses(row) and (places := layout.places(row)):
        logger.warning("the supernet has no %s: only %s have a place for it.", row, name_blocks(places))
    return carries


def _resolve_heads(config: NoahConfig, backbone: Backbone, model: nn.Module) -> None:
    heads = backbone.trained_names(model)
    empty = [name for name in heads if not any(True for _ in model.get_submodule(name).parameters())]
    trained = [name for name in heads if name not in empty]
    if config.modules_to_save is None and trained:
        config.modules_to_save = trained
    for name in empty:
        if name in (config.modules_to_save or ()):
            warnings.warn(
                f"this adapter comes with a classifier, but the model's {name!r} is empty (num_labels=0): outputs are "
                "features, not logits. Load the backbone with num_labels= the adapter's number of classes.",
                stacklevel=2,
            )


def _resolve_targets(config: NoahConfig, linears: Mapping[str, Sequence[str]], projections: Iterable[str]) -> None:
    targets = config.target_modules
    if targets is None:
        targets = set(list(projections) if config.lora_shared_down else list(projections)[:2])
    if isinstance(targets, (set, list)):
        # PEFT finds leaves by the ends of their names: one that is its site's name needs no path
        config.target_modules = {
            name if path.endswith(f".{name}") else path for name in targets for path in linears.get(name, (name,))
        }


def _resolve_scale(config: NoahConfig, layout: Layout, model_type: str | None) -> None:
    """Put the scale of LoRA in the place of its strength: one for all blocks, that of the median block where widths differ."""
    if config.lora_strength is None:
        return
    if not layout.widths:
        raise ValueError(
            f"lora_strength needs the width of the blocks, and nothing is known about those of model_type {model_type!r}. Give "
            "lora_scale instead."
        )
    config.lora_scale = config.lora_strength * STRENGTH_WIDTH / statistics.median(layout.widths)
    config.lora_strength = None


def check_rows(architecture: Architecture, num_blocks: int) -> None:
    """Refuse an architecture of other blocks or unknown modules.

    Raises:
        ValueError: if a row is of no prompt module, or has not one dim per block.
    """
    for name, row in architecture.items():
        check_row(name)
        if len(row) != num_blocks:
            raise ValueError(
                f"row {name!r} has {len(row)} dims but this model has {num_blocks} blocks. Give one dim per block, 0 where "
                f"{name} is absent."
            )


def _check_placeable(architecture: Architecture, layout: Layout, model_type: str | None, model: nn.Module) -> None:
    check_rows(architecture, len(layout.blocks))
    for name in (name for name, row in architecture.items() if any(row) and not layout.can_carry(name)):
        if not layout.refuses(name) and (places := layout.places(name)):
            _check_blocks(name, architecture[name], places, model_type)
            continue
        if layout.refuses(name):
            raise ValueError(f"{name!r} cannot be placed: {layout.refuses(name)}. Leave the row out.")
        if layout.backbone is not None and site_of(name) is not None:
            raise ValueError(
                f"row {name!r} is for a Linear that is called {site_of(name)!r}, and the blocks of this {model_type!r} have "
                f"none (they have {', '.join(layout.paths_by_site())}). Give a row for one of these, or name the Linear in "
                "target_modules."
            )
        if layout.backbone is not None:
            raise ValueError(
                f"{name!r} cannot be placed: the blocks of this {model_type!r} have no site {find_prompt_module(name).site!r} as "
                f"its family is described. Give only rows of {', '.join(filter(layout.can_carry, PROMPT_MODULES))}."
            )
        raise ValueError(
            f"{name!r} cannot be placed: nothing is known about the blocks of model_type {model_type!r}. Give only rows of "
            f"{', '.join(filter(layout.can_carry, PROMPT_MODULES))}, or change the model. {how_to_know(model_type, model)}"
        )


def _check_blocks(name: str, row: Sequence[int], places: Sequence[int], model_type: str | None) -> None:
    """Refuse dims in blocks that have no place for a row's modules, as others do."""
    if without := [block for block, dim in enumerate(row) if dim and block not in places]:
        raise ValueError(
            f"row {name!r} has dims above 0 in {name_blocks(without)}, and the blocks of this {model_type!r} differ: only "
            f"{name_blocks(places)} can carry it. Give 0 for the others."
        )


def _check_backbone(
    config: NoahConfig, model: nn.Module, model_type: str | None, num_blocks: int, width: int | None
) -> None:
    here = {"model_type": model_type, "num_blocks": num_blocks, "width": width}
    made_for = config.backbone or here
    for key in ("model_type", "num_blocks", "width"):
        if None not in (made_for.get(key), here[key]) and made_for[key] != here[key]:
            raise ValueError(
                f"this adapter was made for a backbone with {key} {made_for[key]}, but this model has {key} {here[key]}. "
                "Load it on the backbone named in its adapter_config.json as base_model_name_or_path."
            )
    if config.backbone is None and config.label_names is None:
        config.label_names = _label_names(model)
    config.backbone = here | _fingerprint(config, model)


def _label_names(model: nn.Module) -> list[str] | None:
    """Names of a transformers classifier's classes, in the order of its logits; None where nobody has named them."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    if names == {index: f"LABEL_{index}" for index in range(len(names))} or set(names) != set(range(len(names))):
        return None
    return [str(names[index]) for index in range(len(names))]


def _fingerprint(config: NoahConfig, model: nn.Module) -> dict[str, str]:
    """The entry that tells the backbone from a twin; an adapter that was saved without one stays without."""
    made_for = None if config.backbone is None else config.backbone.get("fingerprint")
    if config.backbone is not None and made_for is None:
        return {}
    here = fingerprint_backbone(model)
    if made_for is not None and here is not None and not same_backbone(made_for, here):
        warnings.warn(
            "this adapter was made for other weights: the model at hand has the shape of its backbone, but not its "
            f"numbers. Load it on {config.base_model_name_or_path or 'the backbone it was trained on'}.",
            OtherBackboneWarning,
            stacklevel=2,
        )
    found = made_for or here
    return {} if found is None else {"fingerprint": found}
