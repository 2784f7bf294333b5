"""The models that a run compares: a classifier on a frozen backbone, and what is added to it."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from peft_noah.architecture import MODULES, Architecture
from peft_noah.data.splits import Splits
from peft_noah.tuner.backbones import find_backbone
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import PROMPT_MODULES

#: the modules that are compared alone, with the dim that each has then
SINGLE_MODULES = {name: PROMPT_MODULES[name].alone for name in MODULES}
BASELINES = ("linear", *SINGLE_MODULES, "full")


def load_backbone(model: str | os.PathLike[str], splits: Splits, seed: int) -> nn.Module:
    """A pretrained ViT with fresh classifiers for the task, in float32, in the same state for the same seed.

    A checkpoint of a class with two classifiers (a DeiT with its distillation token) keeps both: its logits are their mean.

    Args:
        model: a local folder or a Hub id.
        splits: the task: its classes, and its image size, to which position embeddings are interpolated where it is not
            the backbone's own.
        seed: of the classifier's weights.

    Raises:
        ValueError: if the family is unknown.
    """
    backbone = load_classifier(model, splits.label_names, splits.preprocessing.size)
    torch.manual_seed(seed)
    for head in _heads(backbone):
        nn.init.trunc_normal_(head.weight, std=getattr(backbone.config, "initializer_range", 0.02))
        nn.init.zeros_(head.bias)
    return backbone


def load_classifier(
    model: str | os.PathLike[str], label_names: Sequence[str] | None, size: tuple[int, int]
) -> PreTrainedModel:
    """A pretrained ViT in float32; a classifier that does not fit the classes is made anew, with random weights.

    Args:
        model: a local folder or a Hub id.
        label_names: of the classes, in the order of the logits; None: the checkpoint's own.
        size: height and width of the images, in pixels; position embeddings are interpolated where it is not the
            backbone's own.

    Raises:
        ValueError: if the family is unknown.
    """
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    find_backbone(config.model_type)  # before anything is downloaded
    names = {}
    if label_names is not None:
        names["id2label"] = dict(enumerate(label_names))
        names["label2id"] = {name: index for index, name in enumerate(label_names)}
    backbone = AutoModelForImageClassification.from_pretrained(
        model,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        use_safetensors=True,  # never a pickle
        trust_remote_code=False,
        **names,
    )
    if needs_interpolation(config, size):
        backbone.register_forward_pre_hook(_interpolate, with_kwargs=True)
    return backbone


def _heads(backbone: nn.Module) -> list[nn.Module]:
    """The classifiers of a bare or adapted transformers model."""
    return [backbone.get_submodule(name) for name in find_backbone(backbone.config.model_type).head_names(backbone)]


def needs_interpolation(config: Any, size: tuple[int, int]) -> bool:
    """Whether images of ``size`` (height, width; pixels) differ from what the backbone was pretrained on."""
    own = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
    return tuple(own) != tuple(size)


def _interpolate(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, {"interpolate_pos_encoding": True, **kwargs}


def attach(backbone: nn.Module, method: str | Architecture, recipe: str, search_space: Any = None) -> nn.Module:
    """Make a backbone trainable in the way of a method.

    Args:
        method: ``"full"``, ``"linear"``, a prompt module alone (``"lora"``, ``"adapter"``, ``"vpt"`` or another one that is
            registered), ``"supernet"``, or an architecture.
        recipe: of NOAH's modules.
        search_space: of a supernet; None: VTAB-1k's.

    Raises:
        ValueError: if the method is unknown.
    """
    if isinstance(method, Architecture):
        return get_peft_model(backbone, NoahConfig(recipe=recipe, architecture=method))
    if method == "supernet":
        return get_peft_model(backbone, NoahConfig(recipe=recipe, search_space=search_space or "vtab"))
    if method in PROMPT_MODULES:
        blocks = len(find_backbone(backbone.config.model_type).block_names(backbone))
        return attach(backbone, Architecture.uniform(blocks, **{method: PROMPT_MODULES[method].alone}), recipe)
    if method not in BASELINES:
        raise ValueError(f"method {method!r} is not known (known: {', '.join(BASELINES)}).")
    backbone.requires_grad_(method == "full")
    for name, weight in backbone.named_parameters():
        if name.endswith("mask_token"):  # of masked pretraining: a classifier never reads it, and DDP would miss it
            weight.requires_grad_(False)
    for head in _heads(backbone):
        head.requires_grad_(True)
    return backbone


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters besides the classifiers, and the classifiers'."""
    core = model.base_model.model if isinstance(model, PeftModel) else model
    head = sum(p.numel() for module in _heads(core) for p in module.parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - head, head


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "peft-noah"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
