"""What happens to an image before the backbone sees it: one size and one normalisation for all stages of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from peft_noah.data.backbone_config import check_input, load_config
from peft_noah.data.decoding import MAX_PIXELS
from peft_noah.data.image_processor import checked_channels, checked_size, load_processor, pair_of


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
        processor, source = load_processor(backbone, image_size, mean, std)
        preprocessing = cls._from_processor(processor, source)
        if not Path(backbone).is_dir() or (Path(backbone) / "config.json").is_file():
            check_input(load_config(backbone), preprocessing.size)
        return preprocessing

    @classmethod
    def _from_processor(cls, processor: Any, source: str) -> Preprocessing:
        settings = processor.to_dict()
        normalizes = settings.get("do_normalize", True)
        resize = {k: int(v) for k, v in settings["size"].items() if v} if settings.get("do_resize", True) else {}
        crop = pair_of(settings["crop_size"]) if settings.get("do_center_crop") else None
        checked_size((max(resize.values()),) * 2 if resize else crop)
        return cls(
            size=checked_size(crop or pair_of(resize)),
            mean=checked_channels("mean", settings["image_mean"] if normalizes else 0.0),
            std=checked_channels("std", settings["image_std"] if normalizes else 1.0),
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
