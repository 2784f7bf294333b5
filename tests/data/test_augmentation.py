"""Augmented batches follow Pillow's operations at timm's strengths, image by image, and the seed fixes them."""

from __future__ import annotations

import importlib

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import whole, write_task
from PIL import ImageEnhance, ImageOps

from peft_noah.data import Normalizer, load_splits
from peft_noah.data.augmentation import Augment, Augmented

pytest_plugins = ["image_fixtures"]


def noise(height=24, width=32, seed=0):
    """Bytes of an image of middling values, so that contrast and colour have room."""
    values = np.random.default_rng(seed).integers(50, 210, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(torch.float32) / 255


def affine(image, coefficients):
    return image.transform(
        image.size, PIL.Image.Transform.AFFINE, coefficients, PIL.Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )


def solarize_add(image):
    return image.point([min(255, value + 99) if value < 128 else value for value in range(256)] * 3)


# By name of our operation: what timm does at magnitude 9 of 10, positive sign.
PILLOW = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda image: ImageOps.posterize(image, 1),
    "solarize": lambda image: ImageOps.solarize(image, 26),
    "solarize_add": solarize_add,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.81),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.81),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.81),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.81),
    "rotate": lambda image: image.rotate(27, PIL.Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
    "shear_x": lambda image: affine(image, (1, 0.27, 0, 0, 1, 0)),
    "shear_y": lambda image: affine(image, (1, 0, 0, 0.27, 1, 0)),
    "translate_x": lambda image: affine(image, (1, 0, 0.405 * image.width, 0, 1, 0)),
    "translate_y": lambda image: affine(image, (1, 0, 0, 0, 1, 0.405 * image.height)),
}
ORDER = (
    "auto_contrast equalize invert rotate posterize solarize solarize_add brightness contrast color sharpness shear_x "
    "shear_y translate_x translate_y"
).split()


@pytest.fixture(scope="module")
def augment():
    pytest.importorskip("kornia")
    return Augment(fill=(128 / 255,) * 3)


@pytest.mark.parametrize("name", ORDER)
def test_each_operation_is_pillows_at_timms_strength(augment, name):
    operation, image = augment._pixels.operations[ORDER.index(name)], noise()
    ours = operation(tensor(image), torch.tensor([0.9]), torch.tensor([1.0]))
    expected = tensor(PILLOW[name](image))
    difference = (ours.clamp(0, 1) - expected).abs() * 255
    if name.startswith(("rotate", "shear", "translate")):
        # The inside is the same but for rounding; at the rim Pillow fills where we still interpolate.
        assert (difference > 1.01).float().mean() < 0.06
    else:
        assert difference.max() < 1.5  # Pillow rounds or cuts to bytes, once or twice within an operation
    assert (tensor(image) - expected).abs().mean() * 255 > 15  # so these bounds are not met by doing nothing


def test_operations_treat_every_image_by_its_own_level_and_sign(augment):
    images = torch.cat([tensor(noise(seed=seed)) for seed in range(4)])
    level, sign = torch.tensor([0.9, 0.5, 0.85, 0.95]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    for name, operation in zip(ORDER, augment._pixels.operations, strict=True):
        alone = [operation(images[row : row + 1], level[row : row + 1], sign[row : row + 1]) for row in range(4)]
        torch.testing.assert_close(operation(images, level, sign), torch.cat(alone), msg=name)


def test_the_seed_fixes_the_images_and_the_input_stays(augment):
    images = (torch.rand(16, 3, 16, 20) * 255).to(torch.uint8)
    before = images.clone()
    torch.manual_seed(3)
    first, after = augment(images), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(augment(images), first) and torch.equal(torch.rand(1), after)
    assert not torch.equal(augment(images), first)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8 and first.shape == images.shape


def test_two_of_fifteen_operations_are_done_half_of_the_time_each():
    pytest.importorskip("kornia")
    torch.manual_seed(0)
    images = torch.cat([tensor(noise()) * 255] * 600).to(torch.uint8)
    changed = (Augment(jitter=0)(images) != images).flatten(1).any(1).float().mean()
    # Untouched are 1/4, and the few where one operation undoes another; 600 draws have a standard error of 0.018.
    assert abs(changed - 0.75) < 0.06


def test_nothing_asked_for_changes_nothing():
    pytest.importorskip("kornia")
    images = (torch.rand(4, 3, 8, 8) * 255).to(torch.uint8)
    assert torch.equal(Augment(jitter=0, num_operations=0)(images), images)


def test_jitter_alone_keeps_every_factor_within_its_bounds():
    pytest.importorskip("kornia")
    torch.manual_seed(0)
    grey = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)  # without contrast and colour: brightness alone shows
    ratio = Augment(num_operations=0)(grey).float().mean((1, 2, 3)) / 100
    assert 0.595 <= ratio.min() < 0.63 and 1.37 < ratio.max() <= 1.405


def test_augmented_is_a_normaliser_for_training(tmp_path, preprocessing):
    pytest.importorskip("kornia")
    images = whole(load_splits(write_task(tmp_path / "task"), preprocessing).train)
    normalize = Normalizer(preprocessing)
    augmented = Augmented(normalize)
    torch.manual_seed(1)
    result = augmented(images)
    torch.manual_seed(1)
    assert torch.equal(result, normalize(augmented.augment(images)))
    assert result.dtype == torch.float32 and not torch.equal(result, normalize(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jitter": 1.5}, "jitter is 1.5; give a finite number of at least 0 and at most 1"),
        ({"magnitude": -1.0}, "magnitude is -1.0; give a finite number of at least 0 and at most 10"),
        ({"magnitude_std": float("nan")}, "magnitude_std is nan; give"),
        ({"num_operations": 1.5}, "num_operations is 1.5; give"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augment(**settings)


def test_pixels_that_are_not_bytes_are_refused(augment):
    with pytest.raises(ValueError, match="float32 and shape .* cannot be augmented: expected uint8"):
        augment(torch.zeros(1, 3, 4, 4))


def test_without_kornia_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"need kornia, .* pip install 'peft-noah\[augment\]'"):
        Augment()
