"""The config of a pretrained backbone, read by transformers, and whether the backbone takes the images of a run."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, ViTConfig

from peft_noah.tuner.backbones.images import image_size, num_channels, patch_size, reads_one_size

_MAX_MESSAGE = 1_000  # letters of a library's error that are shown: it may quote the file


def load_config(backbone: str | os.PathLike[str]) -> Any:
    """The config of a backbone, by transformers; a masked autoencoder counts as the ViT that it trains.

    Args:
        backbone: a local folder or a Hub id.

    Raises:
        ValueError: there is none that can be read; what else the folder holds is said.
    """
    try:
        config = AutoConfig.from_pretrained(str(backbone), trust_remote_code=False)
        return _as_vit(config) if config.model_type == "vit_mae" else config
    except Exception as error:  # what transformers raises on a value of a wrong type depends on where it meets it
        raise ValueError(
            f"cannot read config.json in {backbone}: {_other_kind(Path(backbone)) or first_line(error)}. Give a folder "
            "written by save_pretrained, or a Hub id."
        ) from error


def _as_vit(config: Any) -> ViTConfig:
    """The config of the encoder of a masked autoencoder, which is a ViT."""
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    return ViTConfig.from_dict(settings)


def is_autoencoder(config: Any) -> bool:
    """Whether a ViT's config, as `load_config` gives it, is of a masked autoencoder."""
    return isinstance(config, ViTConfig) and hasattr(config, "decoder_hidden_size")


def _other_kind(folder: Path) -> str | None:
    """What a folder holds that is no model of transformers, where that can be told."""
    if (folder / "adapter_config.json").is_file():
        return "it holds an adapter, and not the backbone that the adapter belongs to"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    if "architecture" in config and "model_type" not in config:
        return "it holds a model of timm, which is read where timm and torchvision are installed"
    if (name := config.get("model_type", "")) not in transformers.CONFIG_MAPPING:
        return (
            f"transformers does not know the model_type {reprlib.repr(name)}: a newer version may, and one of your own is known "
            "where --plugin names the Python module that registers it"
        )
    return None


def check_input(config: Any, size: tuple[int, int]) -> None:
    """Refuse a backbone that does not take RGB images of a size, before anything is trained.

    Args:
        config: the backbone's, of transformers.
        size: height and width of the images, in pixels. The size that the backbone was pretrained on is always allowed.

    Raises:
        ValueError: it reads another number of channels or another size alone, or its patches do not fill such images.
    """
    channels = num_channels(config)
    if channels != 3:
        raise ValueError(
            f"the backbone reads images of {channels} channels (num_channels in its config.json), but images come as RGB, "
            "with 3. Choose a backbone with num_channels 3."
        )
    patch, own = patch_size(config), image_size(config)
    if own is not None and own != size and reads_one_size(config):
        raise ValueError(
            f"this {config.model_type} reads images of {_by(own)} pixels alone, not of {_by(size)}. Leave image_size out, or "
            "choose a backbone of another size."
        )
    if patch is None or size == own:
        return
    if any(side % part for side, part in zip(size, patch, strict=True)):
        fitting = [max(1, round(side / part)) * part for side, part in zip(size, patch, strict=True)]
        smaller = any(side < part for side, part in zip(size, patch, strict=True))
        fault = "are smaller than one of its patches of" if smaller else "are not filled by its patches of"
        raise ValueError(
            f"images of {_by(size)} pixels {fault} {_by(patch)}. Pass an image_size that is a multiple of "
            f"{patch[0] if patch[0] == patch[1] else _by(patch)}, for instance {fitting[0] if fitting[0] == fitting[1] else _by(fitting)}."
        )


def _by(sides: Sequence[int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def first_line(error: Exception) -> str:
    """The first line of a library's error that says something."""
    line = next(filter(str.strip, str(error).splitlines()), type(error).__name__)
    return (line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}...").rstrip(". ")
