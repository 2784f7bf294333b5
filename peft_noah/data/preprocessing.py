"""What happens to an image before the backbone sees it: one size and one normalisation for all stages of a run."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, ViTConfig

from peft_noah.jsonfile import check_number
from peft_noah.tuner.backbones.images import image_size, num_channels, patch_size, reads_one_size

logger = logging.getLogger(__name__)

MAX_SIDE = 4096
"""Longest side, in pixels, an image may be resized to: a config that asks for more is refused before it allocates."""

MAX_PIXELS = 178_956_970
"""Most pixels of one image, no unit: where Pillow itself refuses an image as a decompression bomb."""

_MAX_MESSAGE = 1_000  # letters of a library's error that are shown: it may quote the file
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preprocessing:
    """How images become the backbone's input: resize, crop, then `(x / 255 - mean) / std` per channel.

    Resizing and cropping are done by the backbone's own image processor (transformers, Pillow backend), so the pixels
    are the library's. The numbers are kept beside it as plain data, to be recorded with every result.

    Attributes:
        size: height and width of what the backbone gets, in pixels.
        mean: per-channel mean (R, G, B), no unit, in the [0, 1] scale.
        std: per-channel standard deviation (R, G, B), no unit, in the [0, 1] scale.
        resample: Pillow's name of the interpolation, such as `"bilinear"`.
        resize: the processor's target of resizing in pixels (`height` and `width`, or `shortest_edge`); empty where it
            does not resize.
        crop: height and width of the centre crop after resizing, in pixels; None where there is none.
        source: where these numbers come from, in words.
        processor: the transformers image processor that does the work; `save_pretrained` writes it beside an adapter.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    resize: dict[str, int] = field(hash=False)
    crop: tuple[int, int] | None
    source: str
    processor: Any = field(repr=False, compare=False)

    #: what it prepares, one of them in a word
    what: ClassVar[str] = "image"
    #: the class of transformers that has the models which read it
    model_class: ClassVar[str] = "AutoModelForImageClassification"

    @property
    def normalizer(self) -> Normalizer:
        """What turns stored pixels into the backbone's input."""
        return Normalizer(self)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str],
        image_size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """The preprocessing a pretrained backbone expects, read from its preprocessor_config.json.

        A local folder without that file gets the defaults of ViTImageProcessor (bilinear, mean and std 0.5) at the
        `image_size` of its config.json; a warning is logged, and `source` says so.

        Args:
            backbone: a local folder or a Hub id.
            image_size: side, or height and width, in pixels, instead of the processor's own. A processor that resizes
                the shortest edge and then crops keeps the ratio of the two.
            mean: per-channel mean instead of the processor's, three numbers in the [0, 1] scale.
            std: per-channel standard deviation instead of the processor's, three positive numbers.

        Raises:
            ValueError: the processor cannot be read, has no fixed output size or rescales by something other than
                1/255; a size, mean or std is out of range; or the backbone takes no RGB images of that size.
        """
        size = None if image_size is None else _checked_size(image_size)
        processor, source = _load_processor(backbone, size)
        _check_settings(processor.to_dict(), backbone)
        settings = _fixed_size(processor.to_dict(), size, backbone)
        for name, value in (("mean", mean), ("std", std)):
            if value is not None:
                settings.update({f"image_{name}": _checked_channels(name, value), "do_normalize": True})
        asked = [name for name, value in (("image_size", size), ("mean", mean), ("std", std)) if value is not None]
        source += f"; {', '.join(asked)} as given by the user" if asked else ""
        preprocessing = cls._from_processor(type(processor).from_dict(settings), source, backbone)
        if not Path(backbone).is_dir() or (Path(backbone) / "config.json").is_file():
            check_input(load_config(backbone), preprocessing.size)
        return preprocessing

    @classmethod
    def _from_processor(cls, processor: Any, source: str, backbone: object) -> Preprocessing:
        settings = processor.to_dict()
        if not settings.get("do_rescale", True) or not math.isclose(
            settings.get("rescale_factor") or 1 / 255, 1 / 255
        ):
            raise ValueError(
                f"the image processor of {backbone} does not rescale pixels by 1/255 (do_rescale "
                f"{settings.get('do_rescale')}, rescale_factor {settings.get('rescale_factor')}): this is not "
                "supported. Use a backbone whose processor maps 0..255 to 0..1."
            )
        normalizes = settings.get("do_normalize", True)
        resize = {k: int(v) for k, v in settings["size"].items() if v} if settings.get("do_resize", True) else {}
        crop = _pair(settings["crop_size"]) if settings.get("do_center_crop") else None
        _checked_size((max(resize.values()),) * 2 if resize else crop)
        return cls(
            size=_checked_size(crop or _pair(resize)),
            mean=_checked_channels("mean", settings["image_mean"] if normalizes else 0.0),
            std=_checked_channels("std", settings["image_std"] if normalizes else 1.0),
            resample=PIL.Image.Resampling(settings.get("resample", PIL.Image.Resampling.BILINEAR)).name.lower(),
            resize=resize,
            crop=crop,
            source=source,
            processor=processor,
        )

    def gigabytes(self, num_images: int) -> float:
        """Memory that `num_images` decoded images take, in gigabytes (10^9 bytes)."""
        return num_images * 3 * self.size[0] * self.size[1] / 1e9

    def check_size(self, width: int, height: int) -> None:
        """Refuse an image of `width` x `height` pixels that is so thin that resizing its shortest edge blows it up.

        Raises:
            ValueError: resized, it would have more than `MAX_PIXELS` pixels.
        """
        edge = self.resize.get("shortest_edge", 0)
        pixels = edge * edge * max(width, height) // min(width, height)
        if pixels > MAX_PIXELS:
            raise ValueError(
                f"it is {width} x {height} pixels: with its shortest edge at {edge} it would have {pixels:,} pixels, "
                f"more than the {MAX_PIXELS:,} allowed"
            )

    def apply(self, image: PIL.Image.Image) -> Tensor:
        """Resize and crop one RGB image, without normalising it.

        Args:
            image: a Pillow image of mode RGB.

        Returns:
            uint8 tensor of shape (3, H, W).

        Raises:
            ValueError: the image is too thin, or the processor did not return uint8 at `size`.
        """
        self.check_size(*image.size)
        pixels = self.processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        pixels = torch.as_tensor(np.asarray(pixels))
        if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (3, *self.size):
            raise ValueError(
                f"{type(self.processor).__name__} gave {pixels.dtype} pixels of shape {tuple(pixels.shape)} where "
                f"uint8 of shape {(3, *self.size)} was expected. Pass image_size, or use another backbone."
            )
        return pixels

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file: every field but the processor."""
        return {
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample,
            "resize": dict(self.resize),
            "crop": None if self.crop is None else list(self.crop),
            "source": self.source,
        }


class Normalizer:
    """Turn a batch of bytes into the backbone's input, `(x / 255 - mean) / std`, on whatever device the batch is.

    Args:
        preprocessing: the run's one choice of mean and std.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(preprocessing.std, dtype=torch.float32).view(3, 1, 1)

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Normalise a batch.

        Args:
            pixel_values: uint8 tensor of shape (B, 3, H, W) or (3, H, W).

        Returns:
            float32 tensor of the same shape, on the same device.

        Raises:
            ValueError: the batch is not uint8, so it was scaled before.
        """
        if pixel_values.dtype != torch.uint8:
            raise ValueError(
                f"a batch of {pixel_values.dtype} cannot be normalised: expected uint8 pixels from 0 to 255, as "
                "ImageSplit gives them. Do not scale or normalise images before."
            )
        # Copied to a device once, not with every batch.
        if self.mean.device != pixel_values.device:
            self.mean, self.std = self.mean.to(pixel_values.device), self.std.to(pixel_values.device)
        return (pixel_values.to(torch.float32) / 255 - self.mean) / self.std


def _load_processor(backbone: str | os.PathLike[str], size: tuple[int, int] | None) -> tuple[Any, str]:
    """The backbone's image processor, or ViT's defaults where a local folder has none, and a sentence on which."""
    folder = Path(backbone)
    of_timm = str(backbone).startswith("timm/") and not folder.is_dir()  # as all of the Hub's are called
    if not of_timm and (not folder.is_dir() or any((folder / name).is_file() for name in _PROCESSOR_FILES)):
        # transformers 5.0 chose Pillow by use_fast=False; later that warns, and backend="pil" is the way.
        pillow = {"backend": "pil"} if hasattr(transformers, "ViTImageProcessorPil") else {"use_fast": False}
        try:
            processor = AutoImageProcessor.from_pretrained(str(backbone), trust_remote_code=False, **pillow)
        except Exception as error:  # what transformers raises on a value of a wrong type depends on where it meets it
            where = "" if folder.is_dir() else " (no folder here, so a Hub id)"
            raise ValueError(
                f"cannot read the image processor of {backbone}{where}: {first_line(error)}. Give a local folder with "
                "config.json and preprocessor_config.json, or a Hub id that is reachable or in the cache."
            ) from error
        source = f"preprocessor_config.json of {backbone}"
        if hasattr(processor, "max_num_patches"):  # SigLIP 2 gives lists of patches, of varying shapes
            return _one_size(processor, image_size(load_config(backbone))), source
        return processor, source
    config = load_config(backbone)
    if isinstance(getattr(config, "pretrained_cfg", None), Mapping):
        return _stated_by_timm(config), f"pretrained_cfg in config.json of {backbone}"
    size = size or _checked_size(image_size(config))
    source = f"defaults for {config.model_type}: no preprocessor_config.json in {backbone}"
    _warn_once(f"{source}; unless given, mean and std are 0.5, which is wrong for a backbone trained on others")
    return _vit_processor(size={"height": size[0], "width": size[1]}), source


def _vit_processor(**settings: Any) -> Any:
    return (getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor)(**settings)


def _one_size(processor: Any, size: tuple[int, int]) -> Any:
    """A processor with the mean, standard deviation and filter of another one, for images of one size."""
    names = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
    kept = {name: value for name in names if (value := getattr(processor, name, None)) is not None}
    return _vit_processor(size={"height": size[0], "width": size[1]}, **kept)


def _stated_by_timm(config: Any) -> Any:
    """The processor that a checkpoint of timm states in its config.json; transformers' own needs torchvision."""
    stated = config.pretrained_cfg
    size, share = image_size(config), stated.get("crop_pct") or 1.0
    edge = {"shortest_edge": math.floor(min(_checked_size(size)) / check_number(share, "crop_pct", 0.1, 1))}
    return transformers.CLIPImageProcessorPil(
        size=edge,
        crop_size={"height": size[0], "width": size[1]},
        resample=PIL.Image.Resampling[str(stated.get("interpolation") or "bicubic").upper()],
        image_mean=list(stated.get("mean") or (0.5,) * 3),
        image_std=list(stated.get("std") or (0.5,) * 3),
    )


@functools.cache
def _warn_once(text: str) -> None:
    """A suite reads the same backbone for every cell; one warning a process is enough."""
    logger.warning(text)


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
    except Exception as error:  # as above
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


def _check_settings(settings: dict[str, Any], backbone: object) -> None:
    """Refuse entries of a wrong type, which a processor takes over from its file as they are."""
    pixels = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
    flags, numbers = ("do_resize", "do_center_crop", "do_rescale", "do_normalize"), (int, float)
    kinds = dict.fromkeys(flags, bool) | {"resample": int, "rescale_factor": numbers}
    kinds |= dict.fromkeys(("image_mean", "image_std"), (*numbers, list, tuple))
    wrong = [name for name, kind in kinds.items() if not _is(settings.get(name), kind)]
    for name in ("size", "crop_size"):
        value = settings.get(name)
        sides = value.items() if isinstance(value, Mapping) else () if value is None else (("", value),)
        if not all(key in pixels and (side is None or _is_side(side)) for key, side in sides):
            wrong.append(name)
    if wrong:
        found = ", ".join(f"{name} {reprlib.repr(settings[name])}" for name in wrong)
        raise ValueError(
            f"the image processor of {backbone} has {found}, which cannot be. Repair its preprocessor_config.json; sides "
            f"are whole numbers from 1 to {MAX_SIDE} pixels."
        )


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a setting is left out or of a kind; a bool is no number."""
    return value is None or (isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)))


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE


def _fixed_size(settings: dict[str, Any], size: tuple[int, int] | None, backbone: object) -> dict[str, Any]:
    """Processor settings that give every image one size: `size` where it is asked for, else the processor's own."""
    settings = dict(settings)
    resize = {k: v for k, v in (settings.get("size") or {}).items() if v} if settings.get("do_resize", True) else {}
    crops = bool(settings.get("do_center_crop"))
    if size is None:
        if not crops and set(resize) != {"height", "width"}:
            raise ValueError(
                f"the image processor of {backbone} gives images of varying size (resize {resize}, no crop), but a "
                "batch needs one size. Pass image_size."
            )
        return settings
    height, width = size
    if crops and resize:
        old = _pair(settings["crop_size"])
        # Keep how much of the image is cropped away: 256 -> 224 becomes 112 -> 98 at 98 pixels.
        ratios = {"height": height / old[0], "width": width / old[1]}
        scale = max(ratios.values())
        resize = {side: round(pixels * ratios.get(side, scale)) for side, pixels in resize.items()}
        settings.update(size=resize, crop_size={"height": height, "width": width})
    else:
        settings.update(do_resize=True, do_center_crop=False, size={"height": height, "width": width})
    return settings


def _pair(size: Any) -> tuple[Any, Any]:
    return (size.get("height"), size.get("width"))


def _checked_size(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in pair):
        raise ValueError(
            f"image size {reprlib.repr(size)} is not allowed: expected one side, or height and width, from 1 to {MAX_SIDE} "
            "pixels. Pass image_size."
        )
    return pair


def _checked_channels(name: str, values: Any) -> tuple[float, float, float]:
    numbers = (values,) * 3 if isinstance(values, (int, float)) else tuple(values or ())
    finite = len(numbers) == 3 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    if not finite or (name == "std" and min(numbers) <= 0):
        limit = "three positive numbers" if name == "std" else "three finite numbers"
        raise ValueError(
            f"{name} {reprlib.repr(values)} is not allowed: expected {limit}, one per colour channel (R, G, B)."
        )
    return tuple(map(float, numbers))


def first_line(error: Exception) -> str:
    """The first line of a library's error that says something."""
    line = next(filter(str.strip, str(error).splitlines()), type(error).__name__)
    return (line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}...").rstrip(". ")
