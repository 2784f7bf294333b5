"""Augmented training images for few-shot learning and domain generalisation, a whole batch at once on its device.

RandAugment (arXiv 1909.13719) at magnitude 9 with standard deviation 0.5, and colour jitter of 0.4, as arXiv 2206.04673
has them. The pixel operations are kornia's; which of them, how strong and how likely follow timm's
`rand-m9-mstd0.5-inc1`, the string in the authors' code: two of 15 operations per image, each drawn anew and done with
probability one half. Where we differ from that code:

- timm leaves colour jitter out where RandAugment is on, so the authors' runs had none; the paper names both. Set
  `jitter=0` for theirs.
- its random resized crop, flip and erasing are not in the paper, and not here.

All that is random is drawn from torch's global generator on the CPU, so that a seed gives the same images on any device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from peft_noah.data.preprocessing import Normalizer
from peft_noah.jsonfile import MAX_COUNT, check_int, check_number

#: magnitudes run from 0 to this, as in timm
MAX_MAGNITUDE = 10.0
#: share of width or height that the strongest translation moves an image by
_TRANSLATION = 0.45


class Augment:
    """RandAugment, then colour jitter, on a batch of bytes.

    Args:
        jitter: brightness, contrast and saturation are each multiplied by a factor from 1 - jitter to 1 + jitter, in an
            order drawn per batch; no unit.
        magnitude: mean strength of RandAugment's operations, from 0 to 10; no unit.
        magnitude_std: its standard deviation over images; no unit.
        num_operations: operations per image.
        fill: colour of what comes into view, (R, G, B) from 0 to 1.

    Raises:
        ValueError: a number is out of range, or kornia is not installed.
    """

    def __init__(
        self,
        jitter: float = 0.4,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_operations: int = 2,
        fill: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        for name, value, high in (
            ("jitter", jitter, 1.0),
            ("magnitude", magnitude, MAX_MAGNITUDE),
            ("magnitude_std", magnitude_std, MAX_MAGNITUDE),
        ):
            check_number(value, name, 0, high)
        check_int(num_operations, "num_operations", 0, MAX_COUNT)
        self.jitter, self.magnitude, self.magnitude_std = jitter, magnitude, magnitude_std
        self.num_operations = num_operations
        self._pixels = _Pixels(_import_kornia(), fill)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Augment a batch, every image in its own way.

        Args:
            pixel_values: uint8 tensor of shape (B, 3, H, W), not changed.

        Returns:
            uint8 tensor of the same shape, on the same device.

        Raises:
            ValueError: the batch is not uint8 of that shape.
        """
        if pixel_values.dtype != torch.uint8 or pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"a batch of {pixel_values.dtype} and shape {tuple(pixel_values.shape)} cannot be augmented: expected "
                "uint8 pixels of shape (B, 3, H, W). Augment before normalising."
            )
        images = pixel_values.to(torch.float32) / 255
        for _ in range(self.num_operations):
            images = self._rand_augment(images)
        if self.jitter:
            images = self._jitter(images)
        return _to_bytes(images)

    def _rand_augment(self, images: Tensor) -> Tensor:
        count, operations = len(images), self._pixels.operations
        chosen = torch.randint(len(operations), (count,))
        done = torch.rand(count) < 0.5
        level = torch.normal(self.magnitude, self.magnitude_std, (count,)) if self.magnitude_std else None
        level = torch.full((count,), self.magnitude) if level is None else level
        level = level.clamp(0.0, MAX_MAGNITUDE) / MAX_MAGNITUDE
        sign = torch.randint(2, (count,)) * 2.0 - 1.0
        for index, operation in enumerate(operations):
            rows = torch.nonzero(done & (chosen == index)).flatten()
            if len(rows):
                of_rows = (level[rows].to(images.device), sign[rows].to(images.device))
                # Each step ends in bytes, as Pillow's do, so that one image looks the same after either library.
                images[rows.to(images.device)] = _to_bytes(operation(images[rows], *of_rows)).to(images.dtype) / 255
        return images

    def _jitter(self, images: Tensor) -> Tensor:
        factors = (1 + self.jitter * (2 * torch.rand(3, len(images)) - 1)).to(images.device)
        for index in torch.randperm(3).tolist():
            images = self._pixels.adjustments[index](images, factors[index])
        return images


class Augmented:
    """A normaliser whose batches are augmented first: what `train` takes in the place of a `Normalizer`.

    Args:
        normalize: the run's normalisation; its mean is the colour of what comes into view, as in timm.

    Raises:
        ValueError: kornia is not installed.
    """

    def __init__(self, normalize: Normalizer) -> None:
        self.normalize, self.augment = normalize, Augment(fill=tuple(normalize.mean.flatten().tolist()))

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Augment and normalise a batch.

        Args:
            pixel_values: uint8 tensor of shape (B, 3, H, W).

        Returns:
            float32 tensor of the same shape, on the same device.
        """
        return self.normalize(self.augment(pixel_values))


class _Pixels:
    """The operations, each on images (B, 3, H, W) from 0 to 1 with a level (B,) from 0 to 1 and a sign (B,) of ±1."""

    def __init__(self, kornia: ModuleType, fill: tuple[float, float, float]) -> None:
        self.enhance, self.transform = kornia.enhance, kornia.geometry.transform
        self.fill = torch.tensor(fill)
        self.adjustments: list[Callable[[Tensor, Tensor], Tensor]] = [
            self.enhance.adjust_brightness_accumulative,
            self.enhance.adjust_contrast_with_mean_subtraction,
            self.enhance.adjust_saturation_with_gray_subtraction,
        ]
        self.operations: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
            self.auto_contrast,
            self.equalize,
            self.invert,
            self.rotate,
            self.posterize,
            self.solarize,
            self.solarize_add,
            *(self._enhanced(adjust) for adjust in (*self.adjustments, self.sharpness)),
            self.shear_x,
            self.shear_y,
            self.translate_x,
            self.translate_y,
        ]

    def auto_contrast(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
        return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-6), images)

    def equalize(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        return self.enhance.equalize(images)

    def invert(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        return self.enhance.invert(images)

    def posterize(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        bits = 4 - (4 * level).to(torch.int64)
        kept = self.enhance.posterize(images, bits.clamp(min=1).to(torch.uint8))
        return torch.where(bits.view(-1, 1, 1, 1) > 0, kept, torch.zeros_like(images))

    def solarize(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        threshold = (256 - torch.floor(256 * level)).view(-1, 1, 1, 1) / 255
        return torch.where(images < threshold - 1e-6, images, 1 - images)

    def solarize_add(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        added = images + torch.floor(110 * level).view(-1, 1, 1, 1) / 255
        return torch.where(images < 128 / 255 - 1e-6, added.clamp(max=1.0), images)

    def sharpness(self, images: Tensor, factor: Tensor) -> Tensor:
        return self.enhance.sharpness(images, factor)

    @staticmethod
    def _enhanced(adjust: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """An adjustment whose neutral factor is 1, by up to 0.9 in either direction."""
        return lambda images, level, sign: adjust(images, (1 + sign * 0.9 * level).clamp(min=0.1))

    def rotate(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        angle = sign * level * math.radians(30)
        cos, sin = torch.cos(angle), torch.sin(angle)
        x, y = (images.shape[-1] - 1) / 2, (images.shape[-2] - 1) / 2
        rows = ((cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))
        return self._warp(images, rows)

    def shear_x(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        shear, one, zero = -sign * level * 0.3, torch.ones_like(level), torch.zeros_like(level)
        return self._warp(images, ((one, shear, shear / 2), (zero, one, zero)))

    def shear_y(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        shear, one, zero = -sign * level * 0.3, torch.ones_like(level), torch.zeros_like(level)
        return self._warp(images, ((one, zero, zero), (shear, one, shear / 2)))

    def translate_x(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        pixels, one, zero = -sign * level * _TRANSLATION * images.shape[-1], torch.ones_like(level), 0 * level
        return self._warp(images, ((one, zero, pixels), (zero, one, zero)))

    def translate_y(self, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        pixels, one, zero = -sign * level * _TRANSLATION * images.shape[-2], torch.ones_like(level), 0 * level
        return self._warp(images, ((one, zero, zero), (zero, one, pixels)))

    def _warp(self, images: Tensor, rows: tuple[tuple[Tensor, ...], ...]) -> Tensor:
        """Move every pixel (x, y) to where its image's 2 x 3 matrix sends it, in pixels."""
        matrix = torch.stack([torch.stack(row, -1) for row in rows], -2)  # (B, 2, 3)
        self.fill = self.fill.to(images)
        size = tuple(images.shape[-2:])
        return self.transform.warp_affine(
            images, matrix, size, padding_mode="fill", fill_value=self.fill, align_corners=True
        )


def _to_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _import_kornia() -> ModuleType:
    # By name, because the package runs without it; only this file needs it.
    try:
        return importlib.import_module("kornia")
    except ImportError as error:
        raise ValueError(
            f"augmented training images need kornia, which cannot be imported ({error}). Install it by "
            "pip install 'peft-noah[augment]'."
        ) from error
