"""Preprocessing equals the backbone's own image processor, and settings that cannot be followed are refused."""

from __future__ import annotations

import PIL.Image
import pytest
import torch
from image_files import SIDE, pixels, whole, write_backbone, write_task
from transformers import AutoImageProcessor, ViTConfig

from peft_noah.data import Normalizer, Preprocessing, load_splits

pytest_plugins = ["image_fixtures"]


@pytest.mark.parametrize(
    "processor",
    [
        None,
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": SIDE, "width": SIDE},
            "image_mean": [0.4] * 3,
        },
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 18},
            "crop_size": {"height": SIDE, "width": SIDE},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ],
    ids=["vit defaults", "vit", "dinov2"],
)
def test_normalised_batches_equal_the_image_processors_own_pixel_values(tmp_path, processor):
    folder = write_backbone(tmp_path / "backbone", processor)
    preprocessing = Preprocessing.from_backbone(folder)
    splits = load_splits(write_task(tmp_path / "task"), preprocessing)
    if processor is None:  # the same settings, written out
        write_backbone(folder, {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}})
    library = AutoImageProcessor.from_pretrained(folder, backend="pil")
    images = [PIL.Image.fromarray(pixels(seed)) for seed in range(6)]
    expected = library(images, return_tensors="pt")["pixel_values"]
    # The library multiplies by 1/255 where we divide by 255: one float32 rounding of numbers up to 1, divided by a
    # standard deviation of 0.22 or more, so at most 1.2e-7 / 0.22 per rounding, and there are three.
    torch.testing.assert_close(Normalizer(preprocessing)(whole(splits.train)), expected, rtol=0, atol=2e-6)


def test_a_folder_without_processor_gets_vit_defaults_and_says_so(backbone_config, caplog):
    preprocessing = Preprocessing.from_backbone(backbone_config)
    assert preprocessing.size == (SIDE, SIDE)
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.resample == "bilinear"
    assert preprocessing.source == f"defaults for vit: no preprocessor_config.json in {backbone_config}"
    assert "no preprocessor_config.json" in caplog.text


def test_size_mean_and_std_can_be_given_and_are_said(backbone_config):
    given = Preprocessing.from_backbone(backbone_config, image_size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (given.size, given.mean, given.std) == ((32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert given.source.endswith("; image_size, mean, std as given by the user")
    batch = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    expected = torch.tensor([(0.2 - 0.1) / 0.4, 0.0, (0.2 - 0.3) / 0.6])
    # 51/255 = 0.2 and the results have a magnitude below 1: a few float32 roundings.
    torch.testing.assert_close(Normalizer(given)(batch)[0, :, 0, 0], expected, rtol=0, atol=1e-6)


def test_a_processor_that_crops_keeps_its_ratio_at_another_size(tmp_path):
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
    }
    folder = write_backbone(tmp_path / "backbone", processor)
    ViTConfig(image_size=224, patch_size=14).save_pretrained(folder)
    own, smaller = Preprocessing.from_backbone(folder), Preprocessing.from_backbone(folder, image_size=98)
    assert (own.size, own.crop, own.resize) == ((224, 224), (224, 224), {"shortest_edge": 256})
    assert (smaller.size, smaller.crop, smaller.resize) == ((98, 98), (98, 98), {"shortest_edge": 112})
    assert own.resample == "bicubic"
    assert smaller.apply(PIL.Image.fromarray(pixels(0, 200, 300))).shape == (3, 98, 98)


def test_a_processor_that_does_not_normalise_is_obeyed(tmp_path):
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_normalize": False}
    preprocessing = Preprocessing.from_backbone(write_backbone(tmp_path / "backbone", processor))
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)


def test_the_processor_of_a_run_can_be_saved_and_gives_the_same_preprocessing(tmp_path, backbone_config):
    given = Preprocessing.from_backbone(backbone_config, image_size=24, mean=(0.1, 0.2, 0.3))
    given.processor.save_pretrained(backbone_config)
    again = Preprocessing.from_backbone(backbone_config)
    assert again.source == f"preprocessor_config.json of {backbone_config}"
    assert {**again.to_dict(), "source": ""} == {**given.to_dict(), "source": ""}


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({"num_channels": 1}, None, "reads images of 1 channels .*images come as RGB, with 3. Choose a backbone"),
        ({"num_channels": 4}, 16, "reads images of 4 channels"),
        (
            {},
            4,
            "images of 4 x 4 pixels are smaller than one of its patches of 8 x 8. .*a multiple of 8, for instance 8.",
        ),
        ({}, 20, "images of 20 x 20 pixels are not filled by its patches of 8 x 8. .*multiple of 8, for instance 16."),
        ({}, (16, 20), "images of 16 x 20 pixels are not filled .*for instance 16"),
        ({"patch_size": (8, 4)}, (20, 24), "patches of 8 x 4. .*multiple of 8 x 4, for instance 16 x 24."),
    ],
)
def test_images_that_the_backbone_does_not_take_are_refused(tmp_path, config, size, message):
    ViTConfig(**{"image_size": 16, "patch_size": 8, **config}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_backbone(tmp_path, image_size=size)


def test_the_size_that_a_backbone_was_pretrained_on_is_taken_as_it_is(tmp_path):
    ViTConfig(image_size=30, patch_size=14).save_pretrained(tmp_path)  # as SigLIP's 384 pixels in patches of 14
    assert Preprocessing.from_backbone(tmp_path).size == (30, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image size 0 is not allowed"),
        ({"image_size": 10**9}, "from 1 to 4096 pixels"),
        ({"mean": (0.5, 0.5)}, r"mean \(0.5, 0.5\) is not allowed: expected three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "expected three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "expected three positive numbers"),
    ],
)
def test_settings_out_of_range_are_refused(backbone_config, options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_backbone(backbone_config, **options)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"shortest_edge": 18}}, "varying size"),
        ({"size": {"height": 10**9, "width": 10**9}}, "from 1 to 4096 pixels"),
        (
            {"size": {"height": 10**9, "width": 9}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            "from 1 to 4096 pixels",
        ),
        ({"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 127.5}, "does not rescale pixels by 1/255"),
        ({"size": {"height": 8, "width": 8}, "image_std": [1, 1, 0]}, "three positive numbers"),
        ({"size": {"height": 8, "width": 8}, "image_mean": ["a", "b", "c"]}, "three finite numbers"),
    ],
)
def test_processors_that_cannot_be_followed_are_refused(tmp_path, processor, message):
    folder = write_backbone(tmp_path / "backbone", {"image_processor_type": "ViTImageProcessor", **processor})
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_backbone(folder)


def test_a_processor_file_that_is_no_json_is_refused(backbone_config):
    (backbone_config / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(ValueError, match="cannot read the image processor of .*backbone"):
        Preprocessing.from_backbone(backbone_config)


def test_a_folder_that_is_no_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read config.json in"):
        Preprocessing.from_backbone(tmp_path)


def test_pixels_that_are_not_bytes_are_not_normalised(preprocessing):
    with pytest.raises(ValueError, match="float32 cannot be normalised: expected uint8"):
        Normalizer(preprocessing)(torch.full((1, 3, 2, 2), float("nan")))
