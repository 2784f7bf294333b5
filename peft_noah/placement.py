"""Which prompt modules of an adapter sit on which leaf of a model: decided once, before the model is touched."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.backbones import BACKBONES, Backbone, find_backbone
from peft_noah.config import NoahConfig
from peft_noah.prompts import PROMPT_MODULES, Lora, Vpt

try:
    from peft.utils.error import NoMatchingPeftModuleError
except ImportError:  # peft 0.20 raises a plain ValueError, which the later class derives from
    NoMatchingPeftModuleError = ValueError


#: most VPT tokens in one block
MAX_TOKENS = 4_096
#: prompt parameters that any backbone may be given, however small it is: 64 MiB in float32
MIN_LIMIT = 2**24


@dataclass(frozen=True)
class Placement:
    """The prompt modules of one leaf.

    Args:
        block: index of the block that the leaf belongs to.
        in_features, out_features: widths of the leaf.
        dims: stored dim by module name; a VPT of 0 only watches tokens that run on.
        shared_down: name of the leaf whose LoRA ``down`` serves this one; None: its own.
        drop_path: rate of stochastic depth behind the leaf; a probability.
    """

    block: int
    in_features: int
    out_features: int
    dims: Mapping[str, int] = field(default_factory=dict)
    shared_down: str | None = None
    drop_path: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Blocks of a model and, where its family is known, the sites in them.

    A model of an unknown family counts as one block that holds nothing but the projections its user names.
    """

    backbone: Backbone | None
    blocks: tuple[str, ...]
    width: int | None

    @classmethod
    def of(cls, model: nn.Module, model_type: str | None, config: NoahConfig) -> Layout:
        """Read a model's layout.

        Raises:
            ValueError: for an unknown family without ``target_modules``, or a known one whose blocks are not found.
        """
        if model_type not in BACKBONES and config.target_modules is not None:
            return cls(None, ("",), None)
        backbone = find_backbone(model_type)
        blocks = tuple(backbone.block_names(model))
        if not blocks:
            raise ValueError(
                f"model_type {model_type!r} should keep its blocks in {backbone.blocks!r}, but this model has none there. "
                "peft-noah needs transformers >= 5.18 for the built-in families; for a model of your own see "
                "examples/add_backbone.py."
            )
        norm = model.get_submodule(f"{blocks[0]}.{backbone.norm}")
        return cls(backbone, blocks, unwrap(norm).normalized_shape[-1])

    def block_of(self, key: str) -> int | None:
        """Index of the block that holds the leaf ``key``; None outside of all."""
        if self.backbone is None:
            return 0
        return next((i for i, name in enumerate(self.blocks) if key.startswith(name + ".")), None)

    def site(self, name: str) -> str | None:
        """Path inside a block of a prompt module's site; None where it has none."""
        if self.backbone is None:
            return None
        return {"mlp_output": self.backbone.mlp_output, "block": self.backbone.norm}.get(name)


def unwrap(module: nn.Module) -> nn.Module:
    """The leaf below all tuner layers."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def resolve_config(config: NoahConfig, layout: Layout, model: nn.Module, model_type: str | None) -> None:
    """Fill in what a config leaves to the model: targets, the classifier, the search space, the stored dims.

    Raises:
        ValueError: if the architecture or the search space does not fit the model.
    """
    if layout.backbone is not None:
        _resolve_targets(config, layout.backbone)
        head = getattr(model, layout.backbone.head, None)
        has_head = head is not None and any(True for _ in head.parameters())
        if config.modules_to_save is None and has_head:
            config.modules_to_save = [layout.backbone.head]
        elif layout.backbone.head in (config.modules_to_save or ()) and head is not None and not has_head:
            warnings.warn(
                f"this adapter comes with a classifier, but the model's {layout.backbone.head!r} is empty (num_labels=0): "
                "outputs are features, not logits. Load the backbone with num_labels= the adapter's number of classes.",
                stacklevel=2,
            )
    _maybe_include_all_linear_layers(config, model)

    num_blocks = len(layout.blocks)
    modules = tuple(name for name, cls in PROMPT_MODULES.items() if cls is Lora or layout.site(cls.site))
    if config.architecture is None:
        space = config.resolve_search_space(num_blocks, modules)
        config.search_space, config.architecture = space.to_dict(), space.largest().to_dict()
    _check_rows(Architecture(config.architecture), num_blocks, modules, model_type)
    _check_backbone(config, model_type, num_blocks, layout.width)


def _resolve_targets(config: NoahConfig, backbone: Backbone) -> None:
    targets = config.target_modules
    if targets is None:
        targets = {"query", "key"} if not config.lora_shared_down else {"query", "key", "value"}
    if isinstance(targets, (set, list)):
        config.target_modules = {backbone.projections.get(name, name) for name in targets}


def _check_rows(architecture: Architecture, num_blocks: int, modules: tuple[str, ...], model_type: str | None) -> None:
    for name, row in architecture.items():
        if name not in PROMPT_MODULES:
            raise ValueError(f"unknown prompt module {name!r} (known: {', '.join(PROMPT_MODULES)}).")
        if len(row) != num_blocks:
            raise ValueError(
                f"row {name!r} has {len(row)} dims but this model has {num_blocks} blocks. Give one dim per block, 0 where "
                f"{name} is absent."
            )
        if name not in modules and any(row):
            raise ValueError(
                f"{name!r} cannot be placed: nothing is known about the blocks of model_type {model_type!r}. Give only a "
                "'lora' row, or describe the family with register_backbone; examples/add_backbone.py shows how."
            )


def _check_backbone(config: NoahConfig, model_type: str | None, num_blocks: int, width: int | None) -> None:
    here = {"model_type": model_type, "num_blocks": num_blocks, "width": width}
    made_for = config.backbone or here
    for key in ("model_type", "num_blocks", "width"):
        if None not in (made_for.get(key), here[key]) and made_for[key] != here[key]:
            raise ValueError(
                f"this adapter was made for a backbone with {key} {made_for[key]}, but this model has {key} {here[key]}. "
                "Load it on the backbone named in its adapter_config.json as base_model_name_or_path."
            )
    config.backbone = here


def plan(model: nn.Module, config: NoahConfig, layout: Layout) -> dict[str, Placement]:
    """Placement by leaf name, for all leaves that an adapter touches.

    Raises:
        ValueError: if a named target is not a Linear, LoRA has a row but no target, or the dims ask for more weights
            than makes sense.
    """
    leaves: dict[str, dict] = {}
    rows = config.architecture
    _place_lora(leaves, model, config, layout, rows.get(Lora.name))
    if not leaves and any(rows.get(Lora.name, ())):
        raise NoMatchingPeftModuleError(
            f"Target modules {config.target_modules} not found in the base model, so LoRA cannot be placed. Check "
            "target_modules, exclude_modules, modules_to_save and layers_to_transform, or leave the 'lora' row out."
        )
    for name, cls in PROMPT_MODULES.items():
        if cls is not Lora and any(rows.get(name, ())):
            _place_at_site(leaves, config, layout, name, cls.site, rows[name])
    if config.drop_path and layout.backbone is not None:
        _place_drop_path(leaves, config, layout)
    placements = {key: Placement(**leaf) for key, leaf in leaves.items()}
    _check_size(placements, model)
    return placements


def _check_size(placements: Mapping[str, Placement], model: nn.Module) -> None:
    """Refuse dims whose weights would dwarf the backbone, before a single one is allocated."""
    tokens = max((placement.dims.get(Vpt.name, 0) for placement in placements.values()), default=0)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"a block is to read {tokens:,} VPT tokens, and attention costs the square of them: at most {MAX_TOKENS:,} "
            "are allowed. Choose a smaller dim."
        )
    asked = sum(sum(leaf.dims.values()) * (leaf.in_features + leaf.out_features) for leaf in placements.values())
    limit = max(MIN_LIMIT, sum(parameter.numel() for parameter in model.parameters()))
    if asked > limit:
        raise ValueError(
            f"this architecture stores about {asked:,} prompt parameters, more than the {limit:,} allowed: as many as "
            f"the backbone has, or {MIN_LIMIT:,} for a small one. Choose smaller dims."
        )


def _place_lora(leaves: dict, model: nn.Module, config: NoahConfig, layout: Layout, row) -> None:
    if not row or not any(row):
        return
    owners: dict[int, str] = {}
    tuner_layers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    for key, module in model.named_modules():
        inside = tuner_layers and key.startswith(tuner_layers)
        block = None if inside or not key else layout.block_of(key)
        if block is None or not row[block] or not matches(config, key):
            continue
        leaf = unwrap(module)
        if not (hasattr(leaf, "in_features") and hasattr(leaf, "out_features")):
            raise ValueError(
                f"target module {key!r} is a {type(leaf).__name__}, but LoRA needs a Linear. Name Linear layers in "
                "target_modules."
            )
        inputs, outputs = _get_in_out_features(leaf)
        shared = None
        if config.lora_shared_down and layout.backbone is not None and _is_projection(layout.backbone, key):
            shared = owners.setdefault(block, key)
        leaves[key] = {
            "block": block,
            "in_features": inputs,
            "out_features": outputs,
            "dims": {Lora.name: row[block]},
            "shared_down": None if shared == key else shared,
        }


def _is_projection(backbone: Backbone, key: str) -> bool:
    return any(key.endswith(f".{path}") for path in backbone.projections.values())


def matches(config: NoahConfig, key: str) -> bool:
    """Whether ``target_modules`` names the leaf, as it would for PEFT's LoRA."""
    result = check_target_module_exists(config, key)
    return bool(result) and not isinstance(result, _ExcludedModule)


def _excluded(config: NoahConfig, key: str) -> bool:
    return isinstance(check_target_module_exists(config, key), _ExcludedModule)


def _place_at_site(leaves: dict, config: NoahConfig, layout: Layout, name: str, site: str, row) -> None:
    watch = name == Vpt.name and config.vpt_past_depth == "carry"
    for block, dim in enumerate(row):
        key = f"{layout.blocks[block]}.{layout.site(site)}"
        if (dim or watch) and not _excluded(config, key):
            _leaf(leaves, key, block, layout.width)["dims"][name] = dim


def _place_drop_path(leaves: dict, config: NoahConfig, layout: Layout) -> None:
    last = max(1, len(layout.blocks) - 1)
    for block, name in enumerate(layout.blocks):
        for path in (layout.backbone.attention_output, layout.backbone.mlp_output):
            if not _excluded(config, f"{name}.{path}"):
                _leaf(leaves, f"{name}.{path}", block, layout.width)["drop_path"] = config.drop_path * block / last


def _leaf(leaves: dict, key: str, block: int, width: int) -> dict:
    return leaves.setdefault(key, {"block": block, "in_features": width, "out_features": width, "dims": {}})
