"""What a family's config says of the images that its models read, and how a model of any family reads a batch of them."""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import nn

from peft_noah.tuner.backbones import BACKBONES, find_backbone


def image_size(config: Any) -> tuple[int, int] | None:
    """Height and width, in pixels, of the images that a backbone was pretrained on; None where its config does not say."""
    config = _of_images(config)
    if (patches := getattr(config, "num_patches", None)) is not None:  # SigLIP 2, whose images are lists of patches
        return _two_sides(isqrt(patches) * config.patch_size)
    if config.model_type == "timm_wrapper":
        stated = (getattr(config, "pretrained_cfg", None) or {}).get("input_size") or (None,)
        return _two_sides((config.model_args or {}).get("img_size") or tuple(stated)[1:])
    return _two_sides(getattr(config, "image_size", None))


def patch_size(config: Any) -> tuple[int, int] | None:
    """Height and width of a patch, in pixels, by which images are divided; None where the config does not say."""
    config = _of_images(config)
    return _two_sides(getattr(config, "patch_stride", None) or getattr(config, "patch_size", None))


def num_channels(config: Any) -> int:
    """Channels of the images, 3 where the config does not say."""
    return getattr(_of_images(config), "num_channels", 3)


def needs_interpolation(config: Any, size: tuple[int, int] | None) -> bool:
    """Whether images of ``size`` (height, width; pixels; None: no images) differ from what the backbone was pretrained on."""
    return size is not None and image_size(config) not in (None, tuple(size))


def reads_one_size(config: Any) -> bool:
    """Whether a model of a known family reads images of the size alone that it was pretrained on."""
    return config.model_type in BACKBONES and BACKBONES[config.model_type].images == "fixed"


def read_images(model: nn.Module, size: tuple[int, int]) -> None:
    """Let a model read batches of images of ``size`` (height, width; pixels), as ``pixel_values`` (B, 3, H, W)."""
    how, config = find_backbone(model.config.model_type).images, model.config
    if how == "patches":
        patch = _of_images(config).patch_size
        model.register_forward_pre_hook(partial(_as_patches, patch=patch), with_kwargs=True)
    elif needs_interpolation(config, size) and how == "interpolated":
        model.register_forward_pre_hook(_interpolate, with_kwargs=True)


def _of_images(config: Any) -> Any:
    """The part of a config that is about images, where the model is a pair of two."""
    return getattr(config, "vision_config", None) or config


def _two_sides(size: Any) -> tuple[int, int] | None:
    """A side, or two, as height and width; None for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
    return pair if len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair) else None


def _interpolate(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, {"interpolate_pos_encoding": True, **kwargs}


def _as_patches(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], *, patch: int
) -> tuple[tuple, dict[str, Any]] | None:
    """Images (B, C, H, W) as their patches (B, H / patch * W / patch, patch * patch * C), row by row; patches stay as they are."""
    pixels, *rest = args or (kwargs["pixel_values"],)
    if pixels.dim() != 4:
        return None
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    windows = pixels.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))
    patches = windows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[rows, columns]] * len(pixels))
    return tuple(rest), {**kwargs, "pixel_values": patches, "spatial_shapes": shapes}
