"""Images labelled by a metadata.csv, .jsonl or .parquet beside them, as `datasets` has them: `file_name` and `label`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from peft_noah.data.class_folders import LeftOut, find_images
from peft_noah.data.split_names import is_split_name, pick
from peft_noah.data.table_files import reading


@dataclass(frozen=True)
class MetadataTables:
    """The tables of a dataset that is labelled by metadata files.

    Attributes:
        tables: the table of each of our splits, its images in the column `image`.
        unsplit: whether it has no splits, so that all of it is called the training split.
        left_out: number of files that no metadata file names, or that are no images, by split and reason.
    """

    tables: Mapping[str, datasets.Dataset]
    unsplit: bool
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_metadata(folder: Path, names: Mapping[str, str | None], label: str | None = None) -> MetadataTables | None:
    """The tables of a folder with a metadata file in it, or in the folder of each split.

    One file for the whole dataset may have a column `split`, or name images by the folders of their splits
    (`train/1.png`); else the dataset is unsplit.

    Args:
        folder: of the dataset.
        names: what the splits are called.
        label: name of the label column; None: `label`.

    Returns:
        None where there is no metadata file with labels for the training images.

    Raises:
        ValueError: a file cannot be read or leads out of its folder, or a split is missing.
    """
    label = label or "label"
    if (whole := _read(folder)) is not None:
        return _of_one_file(folder, names, whole) if label in whole.features else None
    below = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    tables = {name: table for name, path in below.items() if (table := _read(path)) is not None}
    if not any(label in table.features for table in tables.values()):
        return None
    picked = pick(tables, names, folder)
    where = {ours: next(below[name] for name, table in tables.items() if table is picked[ours]) for ours in picked}
    return MetadataTables(picked, False, {ours: _unnamed(where[ours], ours, folder, picked[ours]) for ours in picked})


def _of_one_file(folder: Path, names: Mapping[str, str | None], table: datasets.Dataset) -> MetadataTables:
    rows = defaultdict(list)
    for row, split in enumerate(_splits(folder, table)):
        rows[split].append(row)
    left_out = {"train": _unnamed(folder, "train", folder, table)}
    if set(rows) == {None}:
        return MetadataTables({"train": table}, True, left_out)
    tables = {split: table.select(chosen) for split, chosen in rows.items() if split is not None}
    if None in rows:
        raise ValueError(
            f"the metadata file of {folder} gives {len(rows[None]):,} images no split, such as row {rows[None][0]}. Name "
            "the split of every image."
        )
    return MetadataTables(pick(tables, names, folder), False, left_out)


def _splits(folder: Path, table: datasets.Dataset) -> list[str | None]:
    """The split of every image: from a column of that name, else from the first folder of its path; None: none."""
    if "split" in table.features:
        return [None if split is None else str(split) for split in table["split"][:]]
    first = [os.path.relpath(path, folder).split(os.sep)[0] for path in _paths(table)]
    return [name if is_split_name(name) else None for name in first]


def _paths(table: datasets.Dataset) -> list[str]:
    return [image["path"] for image in table.cast_column("image", datasets.Image(decode=False))["image"]]


def _read(folder: Path) -> datasets.Dataset | None:
    files = [folder / name for name in ImageFolder.METADATA_FILENAMES if (folder / name).is_file()]
    if not files:
        return None
    with reading(folder):
        builder = ImageFolder(data_files={"train": [escape(os.path.abspath(files[0]))]}, drop_labels=True)
        builder.download_and_prepare()
        table = builder.as_dataset()["train"]
    return table if "image" in table.features else None


def _unnamed(folder: Path, split: str, source: Path, table: datasets.Dataset) -> dict[str, int]:
    """What lies in a folder and is no image, or an image that the table does not name; logged too."""
    left_out, named = LeftOut(), set(map(os.path.realpath, _paths(table)))
    for path in find_images(folder, left_out, set()):
        if os.path.realpath(path) not in named:
            left_out.add("images that the metadata file does not name", path)
    left_out.log(split, source)
    return left_out.counts
