"""What works with which family of backbones, and with a model of the user's."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from peft_noah.data.backbone_config import load_config
from peft_noah.fast.backbone_check import BackboneReport, check_backbone, example_inputs
from peft_noah.tuner.backbones import BACKBONES, Backbone
from peft_noah.tuner.backbones.images import image_size, read_images


@dataclass(frozen=True)
class Family:
    """What works in a family that is known.

    Attributes:
        name: its ``model_type``.
        sites: names of the Linears of a block, each of which may carry LoRA.
        tokens: why it has no VPT; None: it has.
        fast: why `fast_forward` is off for it; None: it is on.
        sizes: whether its models read images of other sizes than they were made for: yes or no; empty: they read no images.
    """

    name: str
    sites: tuple[str, ...]
    tokens: str | None
    fast: str | None
    sizes: str


def families() -> list[Family]:
    """All families that are known, those of text last; what their entries say, for which the tests vouch."""
    return [_family(name, backbone) for name, backbone in BACKBONES.items()]


def _family(name: str, backbone: Backbone) -> Family:
    fast = backbone.not_fast
    if fast is None and backbone.norm_after is None:
        fast = "its blocks are not known to it"
    sites = (*backbone.projections, *(site for site in backbone.linears if site != "gate"))
    other_sizes = "no" if backbone.images == "fixed" else "yes"
    sizes = other_sizes if backbone.reads == "images" else ""
    return Family(name, sites, backbone.no_tokens, fast, sizes)


@dataclass(frozen=True)
class Answer:
    """Whether a model of the user's works.

    Attributes:
        works: whether it does, with `peft-noah run` where it is a classifier.
        text: how, or what is missing.
    """

    works: bool
    text: str


def check_model(source: str | os.PathLike[str]) -> Answer:
    """Try the family of a model: random weights, made small from its config.json, which is all that is read.

    Args:
        source: a local folder or a Hub id.

    Raises:
        ValueError: there is no config that can be read, or transformers cannot build the model.
    """
    config = load_config(source)
    model, kind = build_small(config)
    name = f"{source} ({config.model_type}, {type(model).__name__})"
    if config.model_type not in BACKBONES:
        return Answer(False, f"{name}: no. {_what_is_missing(model)}")
    report = check_backbone(model)
    works = not report.problems and any(reason is None for reason in report.modules.values())
    lines = [f"{name}: {'yes' if works else 'no'}.", *_facts(config, kind), *str(report).splitlines()[1:]]
    if kind is None:
        lines.append(
            "  no classifier of transformers: adapt it inside a module of your own; peft-noah run cannot load it"
        )
    return Answer(works, "\n".join(lines))


def _facts(config: Any, kind: str | None) -> list[str]:
    size = image_size(config) if kind != "AutoModelForSequenceClassification" else None
    return [] if size is None else [f"  images of {size[0]} x {size[1]} pixels"]


# ---------------------------------------------------------------------- a small model of the same family


def build_small(config: Any) -> tuple[PreTrainedModel, str | None]:
    """A model of a config's family with random weights, as small as its class allows, and which auto class made it."""
    known = {
        "AutoModelForImageClassification": transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        "AutoModelForSequenceClassification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    kind = next((name for name, mapping in known.items() if type(config) in mapping), None)
    auto, failed = getattr(transformers, kind or "AutoModel"), None
    for changes in (_DEPTH | _WIDTH, _DEPTH, {}):
        try:
            small = _shrunk(config, changes)
            with torch.device("meta"):
                weights = sum(weight.numel() for weight in auto.from_config(small).parameters())
            if weights > _MOST_WEIGHTS:
                raise ValueError(f"it would have {weights:,} weights.")
            model = auto.from_config(small).eval()
            _randomise(model)
            _try(model)
            return model, kind
        except Exception as error:  # a class may ask for numbers that go together
            failed = failed or error
    raise ValueError(
        f"transformers cannot build a {config.model_type!r} from its config: {str(failed).splitlines()[0][:300]} Update "
        "transformers, or repair the file."
    ) from failed


_DEPTH = {"num_hidden_layers": 2, "depths": 1, "depth": 2}
_WIDTH = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_size": 16,
    "intermediate_size": 32,
    "embed_dim": 8,
    "num_heads": 2,
    "pooler_hidden_size": 16,
}
#: of a model that is built to be tried: a ViT-L/16 has 0.3 billion
_MOST_WEIGHTS = 500_000_000


def _shrunk(config: Any, changes: Mapping[str, int]) -> Any:
    config = copy.deepcopy(config)
    for part in filter(None, (config, *(getattr(config, name, None) for name in ("vision_config", "text_config")))):
        for name, value in changes.items():
            own = getattr(part, name, None)
            if name == "num_hidden_layers" and getattr(part, "layer_types", None):
                part.layer_types = part.layer_types[:value]
            if name == "depths" and own is not None:
                part.depths = [value] * len(own)
            elif (
                name == "embed_dim" and own is not None and isinstance(getattr(part, "num_heads", None), (list, tuple))
            ):
                part.embed_dim = value * part.num_heads[0]
            elif isinstance(own, int) and name not in ("embed_dim", "num_heads"):
                setattr(part, name, value)
    if config.model_type == "timm_wrapper":
        sizes = (
            {"depth": 2, "embed_dim": 16, "num_heads": 2}
            if "hidden_size" in changes
            else {"depth": 2}
            if changes
            else {}
        )
        config.model_args = {**(config.model_args or {}), **sizes}
    config.num_labels = 3
    return config


@torch.no_grad()
def _try(model: PreTrainedModel) -> None:
    """Call a model once: numbers that do not go together show only then."""
    if model.config.model_type in BACKBONES:
        model, inputs = copy.deepcopy(model), example_inputs(model)
        if "pixel_values" in inputs:
            read_images(model, tuple(inputs["pixel_values"].shape[2:]))
        model(**inputs)


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Move all weights a little: some start at zero or one, where a mistake would not show."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


# ---------------------------------------------------------------------- a family that nobody has described


def _what_is_missing(model: PreTrainedModel) -> str:
    model_type = model.config.model_type
    found = _lists_of_blocks(model)
    if not found:
        return f"It has no list of equal blocks with Linear layers in them, so {model_type!r} cannot be adapted."
    if (like := _same_layout(model)) is not None:
        name, report = like
        return (
            f"Nobody has described {model_type!r}, but its blocks are laid out as those of {name!r}, and that works:\n"
            f"  from peft_noah.tuner.backbones import BACKBONES\n"
            f"  register_backbone({model_type!r}, BACKBONES[{name!r}])\n"
            f"{str(report).partition(chr(10))[2]}"
        )
    path, block = found
    leaves = [f"  {name}: {module}" for name, module in block.named_modules() if name and not any(module.children())]
    return (
        f"Nobody has described {model_type!r}. Its blocks seem to be the {type(block).__name__}s in {path!r}; say in a Backbone "
        "which of their leaves are its sites, and give it to register_backbone (docs/extend.md, A backbone):\n"
        + "\n".join(leaves)
    )


def _lists_of_blocks(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The longest list of modules of one class with Linears in them, by the name of the list, and its first module."""
    best: tuple[str, nn.Module] | None = None
    longest = 0
    for name, module in model.named_modules():
        kinds = Counter(map(type, module)) if isinstance(module, (nn.ModuleList, nn.Sequential)) else {}
        if nn.ModuleList in kinds:  # of stages
            continue
        if len(kinds) == 1 and len(module) > longest and any(isinstance(m, nn.Linear) for m in module[0].modules()):
            best, longest = (name, module[0]), len(module)
    return best


def _same_layout(model: PreTrainedModel) -> tuple[str, BackboneReport] | None:
    """The known family whose entry fits a model, and what works with it."""
    tried: list[Backbone] = []
    for name, backbone in list(BACKBONES.items()):
        if backbone in tried:
            continue
        tried.append(backbone)
        with suppress(Exception), _registered(model.config.model_type, backbone):  # an entry that does not fit
            report = check_backbone(model)
            if not report.problems and report.modules.get("lora", "") is None:
                return name, report
    return None


@contextmanager
def _registered(model_type: str, backbone: Backbone) -> Iterator[None]:
    BACKBONES[model_type] = backbone
    try:
        yield
    finally:
        del BACKBONES[model_type]
