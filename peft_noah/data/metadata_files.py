"""Images labelled by a metadata.csv, .jsonl or .parquet beside them, as `datasets` has them: `file_name` and `label`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from peft_noah.data.class_folders import LeftOut, find_images, is_not_data
from peft_noah.data.dataset_errors import reading
from peft_noah.data.split_names import is_split_name, pick, unread


@dataclass(frozen=True)
class MetadataTables:
    """The tables of a dataset that is labelled by metadata files.

    Attributes:
        tables: the table of each of our splits, its images in the column `image`; none where the files give no labels.
        columns: of the metadata file of the training images.
        unsplit: whether it has no splits, so that all of it is called the training split.
        unread: what there is besides and is not read, in words.
        left_out: number of files that no metadata file names, or that are no images, and of repeated rows, by split and
            reason.
    """

    tables: Mapping[str, datasets.Dataset]
    columns: Sequence[str]
    unsplit: bool = False
    unread: Sequence[str] = ()
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
        None where there is no metadata file.

    Raises:
        ValueError: a file cannot be read, leads out of its folder or gives an image two labels, or a split is missing.
    """
    label = label or "label"
    if (whole := _read(folder)) is not None:
        found = MetadataTables({}, _columns(whole))
        return _of_one_file(folder, names, whole, label) if label in whole.features else found
    below = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    tables = {name: table for name, path in below.items() if (table := _read(path)) is not None}
    if not any(label in table.features for table in tables.values()):
        return MetadataTables({}, _columns(next(iter(tables.values())))) if tables else None
    picked = pick(tables, names, folder)
    where = {ours: next(below[name] for name, table in tables.items() if table is picked[ours]) for ours in picked}
    left_out = {ours: _left_out(where[ours], picked[ours]) for ours in picked}
    others = [path for path in below.values() if path not in where.values() and not is_not_data(path.name)]
    unlabelled = [f"the folder {path.name!r}" for path in others if next(find_images(path, LeftOut(), set()), None)]
    return _finished(folder, picked, label, unlabelled, left_out)


def _of_one_file(folder: Path, names: Mapping[str, str | None], table: datasets.Dataset, label: str) -> MetadataTables:
    rows = defaultdict(list)
    for row, split in enumerate(_splits(folder, table)):
        rows[split].append(row)
    left_out = {"train": _left_out(folder, table)}
    if set(rows) == {None}:
        return _finished(folder, {"train": table}, label, (), left_out, unsplit=True)
    tables = {split: table.select(chosen) for split, chosen in rows.items() if split is not None}
    if None in rows:
        raise ValueError(
            f"the metadata file of {folder} gives {len(rows[None]):,} images no split, such as row {rows[None][0]}. Name "
            "the split of every image."
        )
    picked = pick(tables, names, folder)
    others = [f"the split {name!r} with its {len(tables[name]):,} images" for name in unread(tables, picked)]
    return _finished(folder, picked, label, others, left_out)


def _finished(
    folder: Path,
    tables: Mapping[str, datasets.Dataset],
    label: str,
    others: Sequence[str],
    left_out: Mapping[str, LeftOut],
    unsplit: bool = False,
) -> MetadataTables:
    """The tables without repeated rows; what is left out is logged."""
    once = {}
    for split, table in tables.items():
        once[split] = _without_repeats(folder, split, table, label)
        for row in range(len(table) - len(once[split])):
            left_out.get(split, left_out["train"]).add("rows that repeat another", folder / f"row {row}")
    for split, left in left_out.items():
        left.log(split, folder)
    counts = {split: left.counts for split, left in left_out.items()}
    return MetadataTables(once, _columns(tables["train"]), unsplit, others, counts)


def _without_repeats(folder: Path, split: str, table: datasets.Dataset, label: str) -> datasets.Dataset:
    labels = table[label][:] if label in table.features else [None] * len(table)
    first: dict[str, int] = {}
    for row, path in enumerate(map(os.path.normpath, _paths(table))):
        before = first.setdefault(path, row)
        if labels[before] != labels[row]:
            raise ValueError(
                f"the metadata file of the {split} split of {folder} gives {os.path.relpath(path, folder)} two labels, "
                f"{labels[before]!r} and {labels[row]!r}. Keep the row that is right."
            )
    return table if len(first) == len(table) else table.select(list(first.values()))


def _splits(folder: Path, table: datasets.Dataset) -> list[str | None]:
    """The split of every image: from a column of that name, else from the first folder of its path; None: none."""
    if "split" in table.features:
        return [None if split is None else str(split) for split in table["split"][:]]
    first = [os.path.relpath(path, folder).split(os.sep)[0] for path in _paths(table)]
    return [name if is_split_name(name) else None for name in first]


def _columns(table: datasets.Dataset) -> tuple[str, ...]:
    """The columns as the metadata file has them."""
    return tuple("file_name" if name == "image" else name for name in table.features)


def _paths(table: datasets.Dataset) -> list[str]:
    return [image["path"] for image in table.cast_column("image", datasets.Image(decode=False))["image"]]


def _file(folder: Path) -> Path | None:
    """The metadata file in a folder; of several the one that `datasets` prefers."""
    return next((folder / name for name in ImageFolder.METADATA_FILENAMES if (folder / name).is_file()), None)


def _read(folder: Path) -> datasets.Dataset | None:
    if (file := _file(folder)) is None:
        return None
    with reading(folder, file.name):
        builder = ImageFolder(data_files={"train": [escape(os.path.abspath(file))]}, drop_labels=True)
        builder.download_and_prepare()
        table = builder.as_dataset()["train"]
    return table if "image" in table.features else None


def _left_out(folder: Path, table: datasets.Dataset) -> LeftOut:
    """What lies in a folder and is no image, or an image that the table does not name."""
    left_out, named = LeftOut(), set(map(os.path.realpath, _paths(table)))
    for path in find_images(folder, left_out, set(), but=(_file(folder),)):
        if os.path.realpath(path) not in named:
            left_out.add("images that the metadata file does not name", path)
    return left_out
