"""The image processor of a pretrained backbone, with the size, mean and standard deviation that a run asks for."""

from __future__ import annotations

import functools
import logging
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import transformers
from transformers import AutoImageProcessor

from peft_noah.data.backbone_config import first_line, load_config
from peft_noah.jsonfile import check_number
from peft_noah.tuner.backbones.images import image_size

logger = logging.getLogger(__name__)

MAX_SIDE = 4096
"""Longest side, in pixels, an image may be resized to: a config that asks for more is refused before it allocates."""

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(
    backbone: str | os.PathLike[str],
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Any, str]:
    """The processor that gives every image one size, and in words where its settings come from.

    Args:
        backbone: a local folder or a Hub id.
        size: side, or height and width, in pixels, instead of the processor's own.
        mean: per-channel mean instead of the processor's.
        std: per-channel standard deviation instead of the processor's.

    Raises:
        ValueError: as `Preprocessing.from_backbone`, but for what the backbone itself takes.
    """
    size = None if size is None else checked_size(size)
    processor, source = _find_processor(backbone, size)
    _check_settings(processor.to_dict(), backbone)
    settings = _fixed_size(processor.to_dict(), size, backbone)
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            settings.update({f"image_{name}": checked_channels(name, value), "do_normalize": True})
    _check_rescaling(settings, backbone)
    asked = [name for name, value in (("image_size", size), ("mean", mean), ("std", std)) if value is not None]
    source += f"; {', '.join(asked)} as given by the user" if asked else ""
    return type(processor).from_dict(settings), source


def _find_processor(backbone: str | os.PathLike[str], size: tuple[int, int] | None) -> tuple[Any, str]:
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
    size = size or checked_size(image_size(config))
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
    edge = {"shortest_edge": math.floor(min(checked_size(size)) / check_number(share, "crop_pct", 0.1, 1))}
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
        old = pair_of(settings["crop_size"])
        # Keep how much of the image is cropped away: 256 -> 224 becomes 112 -> 98 at 98 pixels.
        ratios = {"height": height / old[0], "width": width / old[1]}
        scale = max(ratios.values())
        resize = {side: round(pixels * ratios.get(side, scale)) for side, pixels in resize.items()}
        settings.update(size=resize, crop_size={"height": height, "width": width})
    else:
        settings.update(do_resize=True, do_center_crop=False, size={"height": height, "width": width})
    return settings


def _check_rescaling(settings: Mapping[str, Any], backbone: object) -> None:
    if not settings.get("do_rescale", True) or not math.isclose(settings.get("rescale_factor") or 1 / 255, 1 / 255):
        raise ValueError(
            f"the image processor of {backbone} does not rescale pixels by 1/255 (do_rescale "
            f"{settings.get('do_rescale')}, rescale_factor {settings.get('rescale_factor')}): this is not "
            "supported. Use a backbone whose processor maps 0..255 to 0..1."
        )


def pair_of(size: Any) -> tuple[Any, Any]:
    return (size.get("height"), size.get("width"))


def checked_size(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in pair):
        raise ValueError(
            f"image size {reprlib.repr(size)} is not allowed: expected one side, or height and width, from 1 to {MAX_SIDE} "
            "pixels. Pass image_size."
        )
    return pair


def checked_channels(name: str, values: Any) -> tuple[float, float, float]:
    numbers = (values,) * 3 if isinstance(values, (int, float)) else tuple(values or ())
    finite = len(numbers) == 3 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    if not finite or (name == "std" and min(numbers) <= 0):
        limit = "three positive numbers" if name == "std" else "three finite numbers"
        raise ValueError(
            f"{name} {reprlib.repr(values)} is not allowed: expected {limit}, one per colour channel (R, G, B)."
        )
    return tuple(map(float, numbers))
