"""Images keep their pixels from file to batch, and broken ones are refused by split and index."""

from __future__ import annotations

import struct
import zlib

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from image_files import NAMES, SIDE, encode, pixels, refused, rows, whole, write_backbone, write_split, write_task
from torch.utils.data import DataLoader

from peft_noah.data import ImageSplit, Listing, Preprocessing, build_splits, load_splits
from peft_noah.data.decoding import decode_image

pytest_plugins = ["image_fixtures"]


def test_the_pixels_kept_are_the_processors_bytes_exactly(tmp_path, preprocessing):
    splits = load_splits(write_task(tmp_path / "task"), preprocessing)
    expected = PIL.Image.fromarray(pixels(2)).resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
    item = splits.train[2]
    assert item["pixel_values"].dtype == torch.uint8 and item["labels"].dtype == torch.int64
    assert torch.equal(item["pixel_values"], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert item["labels"] == 2


def test_images_decoded_later_equal_images_kept_in_memory(tmp_path, preprocessing):
    task = write_task(tmp_path / "task")
    kept = load_splits(task, preprocessing)
    later = load_splits(task, preprocessing, cache_gb=0)
    assert kept.train.in_memory and not later.train.in_memory
    for name in ("train", "validation", "test"):
        assert torch.equal(whole(getattr(kept, name)), whole(getattr(later, name)))
    assert kept.fingerprint == later.fingerprint


@pytest.mark.parametrize(("cache_gb", "num_workers"), [(4.0, 0), (0.0, 1)])
def test_a_data_loader_fetches_whole_batches(tmp_path, preprocessing, cache_gb, num_workers):
    split = load_splits(write_task(tmp_path / "task"), preprocessing, cache_gb=cache_gb).train
    batches = list(DataLoader(split, batch_size=4, collate_fn=ImageSplit.collate, num_workers=num_workers))
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(4, 3, SIDE, SIDE), (2, 3, SIDE, SIDE)]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), whole(split))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("cache_gb", [4.0, 6 * 3 * SIDE * SIDE / 1e9])
def test_train_plus_validation_holds_both_in_order(tmp_path, preprocessing, cache_gb):
    splits = load_splits(write_task(tmp_path / "task"), preprocessing, cache_gb=cache_gb)
    both = splits.train + splits.validation
    assert len(both) == 12
    assert torch.equal(whole(both), torch.cat([whole(splits.train), whole(splits.validation)]))
    order = [7, 0, 11, 5, 6, 5]
    batch = both.__getitems__(order)
    assert torch.equal(batch["pixel_values"], whole(both)[order])
    assert torch.equal(batch["labels"], torch.cat([splits.train.labels, splits.validation.labels])[order])
    assert torch.equal((both + splits.test)[14]["pixel_values"], splits.test[2]["pixel_values"])


def test_negative_and_outside_indices_behave_as_in_a_list():
    split = ImageSplit(torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([0, 1]))
    assert torch.equal(split[-1]["pixel_values"], split[1]["pixel_values"])
    with pytest.raises(IndexError, match="index 2 is outside a split of 2 images"):
        split[2]


def test_the_fingerprint_changes_with_one_pixel_or_one_label():
    images, labels = torch.zeros((2, 3, 2, 2), dtype=torch.uint8), torch.tensor([0, 1])
    prints = {ImageSplit(images, labels).fingerprint, ImageSplit(images, labels.flip(0)).fingerprint}
    images = images.clone()
    images[1, 2, 1, 1] = 1
    prints.add(ImageSplit(images, labels).fingerprint)
    assert len(prints) == 3


def test_the_fingerprint_does_not_depend_on_the_image_size(tmp_path, backbone_config, preprocessing):
    task = write_task(tmp_path / "task")
    larger = load_splits(task, Preprocessing.from_backbone(backbone_config, image_size=32))
    assert larger.train.image_shape == (3, 32, 32)
    assert larger.fingerprint == load_splits(task, preprocessing).fingerprint


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_usual_mode_become_rgb_as_pillow_converts_them(mode):
    image = PIL.Image.fromarray(pixels(1)).convert(mode)
    decoded = decode_image(encode(image, "TIFF"))
    assert decoded.mode == "RGB"
    assert np.array_equal(decoded, image.convert("RGB"))


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(recwarn):
    image = PIL.Image.fromarray(pixels(1)).convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    decoded = decode_image(encode(image, "PNG", transparency=bytes([0, 128, 255])))
    assert np.array_equal(decoded, image.convert("RGB"))
    assert not recwarn.list


def test_16_bit_grey_keeps_its_high_byte():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode_image(encode(PIL.Image.fromarray(values))))
    assert np.array_equal(decoded[..., 0], (values >> 8).astype(np.uint8))
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_exif_orientation_is_applied_as_datasets_does():
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    encoded = encode(PIL.Image.fromarray(pixels(1, height=4, width=9)), "PNG", exif=exif)
    decoded = decode_image(encoded)
    assert decoded.size == (4, 9)
    assert np.array_equal(decoded, datasets.Image().decode_example({"bytes": encoded, "path": None}))


def broken_images() -> dict[str, tuple[bytes | None, str]]:
    whole_png, tiff = encode(pixels(0)), encode(np.full((4, 4), np.nan, dtype=np.float32), "TIFF")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole_png[33:]
    return {
        "noise": (b"this is no image", "it is no readable image; allowed are .*PNG"),
        "empty": (b"", "it is no readable image"),
        "missing": (None, r"it is missing \(null\)"),
        "cut": (whole_png[:-400], "it cannot be decoded"),
        "bomb": (bomb, "decompression bomb"),
        "float": (tiff, "floating-point pixels, .* NaN"),
        "integers": (
            encode(PIL.Image.fromarray(np.full((4, 4), -7, dtype=np.int32)), "TIFF"),
            "integer pixels from -7",
        ),
        "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is no readable image"),
    }


@pytest.mark.parametrize("kind", sorted(broken_images()))
def test_a_broken_image_is_refused_with_split_and_index(tmp_path, preprocessing, kind):
    content, message = broken_images()[kind]
    task = write_task(tmp_path / "task")
    images = [*rows(2), None if content is None else {"bytes": content, "path": "holiday.png"}]
    write_split(task, "validation.parquet", images, [0, 1, 2])
    where = "" if content is None else r" \(holiday.png\)"
    refused(task, preprocessing, f"image 2 of split 'validation'{where} cannot be used: .*{message}")


@pytest.mark.parametrize("kind", ["noise", "bomb", "script", "missing"])
def test_a_broken_header_is_refused_even_where_images_are_decoded_later(tmp_path, preprocessing, kind):
    content, message = broken_images()[kind]
    task = write_task(tmp_path / "task")
    write_split(task, "test.parquet", [None if content is None else {"bytes": content, "path": None}], [0])
    refused(task, preprocessing, f"image 0 of split 'test' cannot be used: .*{message}", cache_gb=0)


def test_a_bomb_is_refused_even_where_pillows_own_limit_was_lifted(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="60000 x 60000 pixels, more than the 178,956,970 allowed"):
        decode_image(broken_images()["bomb"][0])


def test_an_image_cut_short_and_decoded_later_is_named_when_it_is_fetched(tmp_path, preprocessing):
    task = write_task(tmp_path / "task")
    write_split(task, "test.parquet", [*rows(1), {"bytes": encode(pixels(1))[:-400], "path": None}], [0, 1])
    test = load_splits(task, preprocessing, cache_gb=0).test
    with pytest.raises(ValueError, match="image 1 of split 'test' cannot be used"):
        whole(test)


def test_an_image_so_thin_that_resizing_would_fill_the_memory_is_refused(tmp_path):
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
    }
    preprocessing = Preprocessing.from_backbone(write_backbone(tmp_path / "backbone", processor))
    listing = Listing([{"bytes": encode(PIL.Image.new("RGB", (30000, 1))), "path": None}, *rows(1)], [0, 1])
    for cache_gb in (4.0, 0.0):
        with pytest.raises(ValueError, match="image 0 of split 'train' .* 30000 x 1 pixels: with its shortest edge"):
            build_splits(listing, listing, listing, NAMES, preprocessing, source="here", cache_gb=cache_gb)


@pytest.mark.parametrize("path", ["/dev/zero", "https://example.org/cat.png", "/no/such/file.png"])
def test_a_table_cannot_make_us_open_a_device_or_the_network(preprocessing, path):
    listing = Listing([{"bytes": None, "path": path}, *rows(1)], [0, 1])
    with pytest.raises(
        ValueError, match=rf"image 0 of split 'train' \({path}\) cannot be used: there is no such file"
    ):
        build_splits(listing, listing, listing, NAMES, preprocessing, source="here")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "torch.float32 .* not allowed: expected uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"shape \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "do not fit 2 images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "do not fit 2 images"),
    ],
)
def test_a_split_of_other_shapes_or_types_is_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSplit(images, labels)


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_a_subset_holds_the_chosen_images_in_order(cache_gb, preprocessing):
    encoded = [{"bytes": encode(pixels(seed)), "path": None} for seed in range(5)]
    split = ImageSplit.decode(encoded, [0, 1, 2, 3, 4], preprocessing, cache_gb=cache_gb)
    both = split + split
    chosen = both.subset([7, 0, 4])
    assert chosen.labels.tolist() == [2, 0, 4] and len(chosen) == 3 and chosen.in_memory == (cache_gb > 0)
    assert torch.equal(whole(chosen), whole(both)[[7, 0, 4]])
    assert chosen.digests == [both.digests[row] for row in (7, 0, 4)]
    assert chosen.fingerprint not in (both.fingerprint, both.subset([0, 7, 4]).fingerprint)
    assert (chosen + split).labels.tolist() == [2, 0, 4, 0, 1, 2, 3, 4]
