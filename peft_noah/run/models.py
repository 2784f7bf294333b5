"""The models that a run trains: a classifier on a pretrained backbone, and what is added to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from peft_noah.architecture import Architecture
from peft_noah.data.backbone_config import is_autoencoder, load_config
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.splits import Splits
from peft_noah.data.tokenization import Tokenization
from peft_noah.search_space import SearchSpace
from peft_noah.searching.design import Design
from peft_noah.tuner.backbones import find_backbone
from peft_noah.tuner.backbones.images import read_images
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import PROMPT_MODULES, find_prompt_module


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
    torch.manual_seed(seed)  # of what stands before a classifier and is not in the checkpoint
    backbone = load_classifier(model, splits.label_names, splits.preprocessing)
    torch.manual_seed(seed)
    for head in _heads(backbone):
        nn.init.trunc_normal_(head.weight, std=getattr(backbone.config, "initializer_range", 0.02))
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return backbone


def load_classifier(
    model: str | os.PathLike[str], label_names: Sequence[str] | None, preprocessing: Preprocessing | Tokenization
) -> PreTrainedModel:
    """A pretrained backbone in float32; a classifier that does not fit the classes is made anew, with random weights.

    Args:
        model: a local folder or a Hub id.
        label_names: of the classes, in the order of the logits; None: the checkpoint's own.
        preprocessing: of the images, to whose size position embeddings are interpolated where it is not the backbone's own; or
            of the texts, whose padding the backbone is told.

    Raises:
        ValueError: if the family is unknown, or the weights are damaged, a pickle, or of another model.
    """
    config = load_config(model)
    find_backbone(config.model_type)  # before anything is downloaded
    names = {}
    if label_names is not None:
        names["id2label"] = dict(enumerate(label_names))
        names["label2id"] = {name: index for index, name in enumerate(label_names)}
    backbone = _load_weights(model, names, preprocessing.model_class)
    if isinstance(preprocessing, Preprocessing):
        read_images(backbone, preprocessing.size)
    else:  # a decoder's classifier reads the last token that is not padding
        backbone.config.pad_token_id = preprocessing.pad
    return backbone


def _load_weights(model: str | os.PathLike[str], names: dict[str, Any], model_class: str) -> PreTrainedModel:
    _refuse_pickle(Path(model))
    if is_autoencoder(config := load_config(model)):  # for transformers, one without a classifier
        for name, value in names.items():
            setattr(config, name, value)
        names = {"config": config}
    try:
        backbone, found = getattr(transformers, model_class).from_pretrained(
            model,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
            output_loading_info=True,
            **names,
        )
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {model} cannot be read: {error}. They were cut short, or are a pointer of Git LFS: download "
            "them again."
        ) from error
    new = [key if isinstance(key, str) else key[0] for key in (*found["missing_keys"], *found["mismatched_keys"])]
    heads = tuple(f"{name}." for name in find_backbone(backbone.config.model_type).trained_names(backbone))
    if lacking := sorted(key for key in new if not key.startswith(heads) and not key.endswith("mask_token")):
        raise ValueError(
            f"the weights in {model} are not those of the model in its config.json: {len(lacking):,} are missing or of "
            f"another shape, such as {lacking[0]}. Random ones would stand for them. Give a whole checkpoint."
        )
    return backbone


def _refuse_pickle(folder: Path) -> None:
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{folder} holds its weights as a pickle, pytorch_model.bin, which can run code and is not read. Save it anew: "
            "load it with transformers and call save_pretrained."
        )


def lacks_place(backbone: str | os.PathLike[str], rows: Iterable[str]) -> str | None:
    """Why the family of a backbone has no place for the modules of some rows, as the rest of a sentence; None: it has."""
    family = find_backbone(load_config(backbone).model_type)
    classes = [cls for row in rows if (cls := find_prompt_module(row)) is not None]
    return family.no_tokens if any(cls.adds_tokens for cls in classes) else None


def _heads(backbone: nn.Module) -> list[nn.Module]:
    """The classifiers of a bare or adapted transformers model."""
    return [backbone.get_submodule(name) for name in find_backbone(backbone.config.model_type).head_names(backbone)]


def add_modules(backbone: nn.Module, architecture: Architecture, recipe: str) -> PeftModel:
    """A backbone with the modules of an architecture, which train with the classifier."""
    return get_peft_model(backbone, NoahConfig(recipe=recipe, architecture=architecture))


def add_one_module(backbone: nn.Module, module: str, recipe: str) -> PeftModel:
    """A backbone with one prompt module in every block, with the dim that it has alone."""
    blocks = len(find_backbone(backbone.config.model_type).block_names(backbone))
    architecture = Architecture.uniform(blocks, **{module: PROMPT_MODULES[module].alone})
    return add_modules(backbone, architecture, recipe)


def add_design(backbone: nn.Module, design: Design, recipe: str) -> PeftModel:
    """A backbone with the modules of a design, at their start."""
    num_blocks = len(find_backbone(backbone.config.model_type).block_names(backbone))
    config = NoahConfig(recipe=recipe, architecture=design.architecture(num_blocks), **design.options)
    return get_peft_model(backbone, config)


def add_supernet(backbone: nn.Module, search_space: str | SearchSpace, recipe: str) -> PeftModel:
    """A backbone with the largest architecture of a search space."""
    return get_peft_model(backbone, NoahConfig(recipe=recipe, search_space=search_space))


def train_classifier(backbone: nn.Module) -> nn.Module:
    """Let nothing train but the classifiers, with what stands before them: a linear probe."""
    backbone.requires_grad_(False)
    for name in find_backbone(backbone.config.model_type).trained_names(backbone):
        backbone.get_submodule(name).requires_grad_(True)
    return backbone


def train_all_weights(backbone: nn.Module) -> nn.Module:
    """Let all weights of a backbone train."""
    backbone.requires_grad_(True)
    for name, weight in backbone.named_parameters():
        if name.endswith("mask_token"):  # of masked pretraining: a classifier never reads it, and DDP would miss it
            weight.requires_grad_(False)
    return backbone


def classifiers(model: PeftModel) -> list[nn.Linear]:
    """The trained Linears that make the logits."""
    core = model.base_model.model
    heads = map(core.get_submodule, find_backbone(core.config.model_type).head_names(core))
    return [h.modules_to_save[model.active_adapter] if isinstance(h, ModulesToSaveWrapper) else h for h in heads]


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters besides the classifiers, and the classifiers'."""
    core = model.base_model.model if isinstance(model, PeftModel) else model
    names = find_backbone(core.config.model_type).trained_names(core)
    head = sum(p.numel() for name in names for p in core.get_submodule(name).parameters() if p.requires_grad)
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - head, head
