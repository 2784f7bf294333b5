"""Small image datasets that tests write themselves."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Features, Image
from transformers import ViTConfig

from peft_noah.data import ImageSplit, bundled_task, load_splits

SIDE = 16
NAMES = ["cat", "dog", "owl"]


def write_backbone(folder: Path, processor: dict | None = None) -> Path:
    ViTConfig(image_size=SIDE, patch_size=8).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def pixels(seed: int, height: int = 20, width: int = 24, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def encode(image: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rows(count: int, first_seed: int = 0) -> list[dict]:
    return [{"bytes": encode(pixels(first_seed + index)), "path": None} for index in range(count)]


def write_split(folder: Path, file: str, images: list, labels: list, label_feature=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    label_feature = label_feature or ClassLabel(names=NAMES)
    features = Features({"image": Image(), "label": label_feature})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / file)


def write_task(folder: Path, splits=("train", "validation", "test"), label_feature=None, labels=(0, 1, 2)) -> Path:
    for position, split in enumerate(splits):
        write_split(folder, f"{split}.parquet", rows(6, 10 * position), list(labels) * 2, label_feature)
    return folder


def bundle_few(folder: Path, number: int = 60) -> str:
    """Code after which the bundled task is the first images of itself, for what is tested as it stands."""
    folder.mkdir()
    for path in bundled_task().glob("*.parquet"):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, number), folder / path.name)
    return f"import peft_noah.data\npeft_noah.data.bundled_task = lambda: {str(folder)!r}\n"


def write_image_folder(folder: Path, validation: str = "val", classes: tuple[str, ...] = ("owl", "ant")) -> Path:
    for position, split in enumerate(("train", validation, "test")):
        for offset, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for index in range(2):
                image = PIL.Image.fromarray(pixels(100 * position + 10 * offset + index))
                image.save(folder / split / name / f"{index}.png")
    return folder


def whole(split: ImageSplit) -> torch.Tensor:
    return split.__getitems__(list(range(len(split))))["pixel_values"]


def refused(source, preprocessing, message: str, **options) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_splits(source, preprocessing, **options)
    assert type(caught.value) is ValueError


def write_list(folder: Path, file: str, lines: list[tuple[str, int]], base: str = "") -> None:
    """A list of `path label` lines, with the images it names below `folder/base`, each its own."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(f"{path} {label}\n" for path, label in lines))
    for path, _ in lines:
        image = folder / base / path
        if not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(encode(pixels(zlib.crc32(path.encode()), 4, 4)))


def lines_of(split: str, labels: list[int], pattern: str = "images/{split}/{number:06d}.png") -> list[tuple[str, int]]:
    return [(pattern.format(split=split, number=number, label=label), label) for number, label in enumerate(labels)]


def write_vtab_task(folder: Path, train=(0, 1, 2) * 2, validation=(2, 1, 0), test=(0, 1, 2), without=()) -> Path:
    """VTAB-1k's layout as it circulates; `without` leaves lists out."""
    train, validation = lines_of("train", list(train)), lines_of("val", list(validation))
    lists = {
        "train800.txt": train,
        "val200.txt": validation,
        "train800val200.txt": train + validation,
        "test.txt": lines_of("test", list(test)),
    }
    for file, lines in lists.items():
        if file not in without:
            write_list(folder, file, lines)
    return folder


def write_few_shot_task(folder: Path, base: str = "images", pattern: str = "{split}_{number}.jpg") -> Path:
    """The NOAH authors' few-shot lists at 1 and 2 shots, seeds 0 and 1, of three classes."""
    for shots in (1, 2):
        for seed in (0, 1):
            lines = lines_of(f"train{seed}", [0, 1, 2] * shots, pattern)
            write_list(folder, f"annotations/train_meta.list.num_shot_{shots}.seed_{seed}", lines, base)
    write_list(folder, "annotations/val_meta.list", lines_of("val", [0, 1, 2], pattern), base)
    write_list(folder, "annotations/test_meta.list", lines_of("test", [2, 1, 0], pattern), base)
    return folder
