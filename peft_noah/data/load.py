"""Where a run's images come from: parquet, folders and lists of images, the Hub, or the task shipped with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets

from peft_noah.data.class_folders import LeftOut, find_images, is_not_data
from peft_noah.data.image_folders import read_image_folders
from peft_noah.data.list_files import Entry, find_lists, list_images, name_classes, read_entries
from peft_noah.data.listings import Listing, Listings, check_shots
from peft_noah.data.metadata_files import read_metadata
from peft_noah.data.other_tests import read_other_test
from peft_noah.data.parquet_folders import parquet_files
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.split_names import BOTH, check_names, is_split_name, pick
from peft_noah.data.splits import Splits, decode_listings
from peft_noah.data.table_columns import find_image_columns, find_label_columns, undecoded
from peft_noah.data.table_files import is_one_table, is_saved_to_disk, read_tables
from peft_noah.data.table_labels import encode_labels
from peft_noah.sources import check_given


def bundled_task() -> Path:
    """Folder of the task shipped with the package: Fashion-MNIST, 800 / 200 / 2,000 images."""
    return Path(str(files("peft_noah").joinpath("assets", "fashion_mnist")))


def bundled_backbone() -> Path:
    """Folder of the pretrained backbone shipped with the package: a ViT of 12 blocks for 64 x 64 pixels."""
    return Path(str(files("peft_noah").joinpath("assets", "vit-tiny-64")))


def load_splits(
    source: str | os.PathLike[str], preprocessing: Preprocessing, *, cache_gb: float = 4.0, **options: Any
) -> Splits:
    """Train, validation and test splits of a labelled image dataset, decoded and resized once.

    Args:
        source: a folder, or a Hub id; what it may hold is said in `read_listings`.
        preprocessing: the run's resize, crop and normalisation.
        cache_gb: most memory decoded images may take, in gigabytes (10^9 bytes); splits beyond it (the test split
            last) are decoded whenever they are fetched, with the same values.
        **options: which columns, splits and shots: the keyword arguments of `read_listings`.

    Raises:
        ValueError: as `read_listings`; or an image is corrupt, too large or made of floats.
    """
    return decode_listings(read_listings(source, **options), preprocessing, cache_gb)


def read_listings(
    source: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str | None = "test",
    validation_fraction: float = 0.2,
    seed: int = 0,
    shots: int | None = None,
    other_tests: Mapping[str, str | os.PathLike[str]] | None = None,
    num_classes: int | None = None,
    dataset_config: str | None = None,
) -> Listings:
    """Which images of a labelled dataset, with which labels, are in which split; undecoded.

    What `source` holds is found out, in this order:

    - a dataset saved by `save_to_disk`;
    - parquet files: `train.parquet`, or as a Hub repository has them, `data/train-00000-of-00001.parquet`,
      `train/0000.parquet`, `<config>/train/0000.parquet`, or by the YAML in README.md;
    - the NOAH authors' few-shot lists, `annotations/train_meta.list.num_shot_<k>.seed_<s>`, `val_meta.list`,
      `test_meta.list`; CoOp's, `split_zhou_<Name>.json`; VTAB-1k's, `train800.txt`, `val200.txt`, `test.txt`, also
      without numbers; each with the images it names in the same folder or one below it;
    - images with a `metadata.csv`, `.jsonl` or `.parquet` that has the columns `file_name` and `label`;
    - folders of images, `train/<class>/...`, also `val/`, `test/`; or `<class>/...` without splits.

    Anything that is no folder is a dataset's Hub id, `owner/name` or `owner/name:config`. Where the source has no
    splits, a fifth of the images of every class becomes the test split, and then `validation_fraction` of what is left
    the validation split. Where there is no test split, or all its labels are missing or -1, `test` is None.

    Args:
        source: a folder, or a Hub id.
        image_column: the column of images; found by its type where None. One of plain bytes must be named.
        label_column: the column of classes; found by its type, or the name `label`, where None.
        train_split: name of the training split (`training` and `train800` stand in for `train`, in any case of letters).
        validation_split: name of the validation split (`val`, `valid`, `dev` and `val200` stand in for `validation`).
            None, or "validation" where there is none: split off the training images, with as many of each class as
            fits. Of VTAB-1k's `train800`, `val200` and `train800val200`, any two give the third.
        test_split: name of the test split (`testing` stands in for `test`); None: none.
        validation_fraction: share of the training images to split off where validation is missing, no unit.
        seed: seed of that choice, and of `shots`.
        shots: training images per class: the source's own list for `shots` and `seed`, else drawn with `seed`; None:
            all. The validation split stays as it is; where there is none, min(shots, 4) more per class become it.
        other_tests: further test sets by name, with the classes of the training images or some of them: a folder of
            lists, parquet or class folders (named as the training classes are, or by their numbers), or a Hub id.
        num_classes: where labels are numbers without names: labels from here on are refused, and a table's numbers are
            class indices, not names; None: the classes of a list are those up to its largest label.
        dataset_config: which config of a dataset that has several, on the Hub or in a folder.

    Raises:
        ValueError: source, split, list or column is missing or ambiguous; a list names a missing image or has a
            malformed line; a split is empty; there are fewer than two classes; a label is missing or out of range or
            its names differ over splits.
    """
    names = {"train": train_split, "validation": validation_split, "test": test_split}
    check_names(names)
    check_shots(shots)
    for what, given in {"dataset": source, **(other_tests or {})}.items():
        check_given(given, what)
    asked = _Asked(names, image_column, label_column, dataset_config, num_classes, shots, seed)
    listings, shots_are_drawn = _read(source, asked)
    others = {
        name: read_other_test(name, other, listings.label_names, image_column, label_column)
        for name, other in (other_tests or {}).items()
    }
    shots = None if shots_are_drawn else shots
    return replace(listings, other_tests=others).completed(validation_fraction, seed, shots)


@dataclass(frozen=True)
class _Asked:
    """Which splits, columns and images of a source are asked for, as `read_listings` has them; each None as there."""

    names: Mapping[str, str | None]
    image: str | None
    label: str | None
    config: str | None
    num_classes: int | None
    shots: int | None
    seed: int


def _read(source: str | os.PathLike[str], asked: _Asked) -> tuple[Listings, bool]:
    """The listings as they are in the source, and whether they hold no more than the shots that are asked for."""
    folder = Path(source).expanduser()
    if not folder.is_dir() or is_saved_to_disk(folder) or asked.config is not None or parquet_files(folder):
        tables, others = read_tables(source, asked.names, asked.config)
        listings = _noting_unread(_from_tables(tables, source, asked), [*others, *_images_beside(folder)])
        return (listings.as_unsplit() if is_one_table(folder) else listings), False
    if lists := find_lists(folder, asked.shots, asked.seed):
        return _from_lists(folder, lists, asked), ".num_shot_" in lists.get("train", folder).name
    for place in dict.fromkeys((folder, _unwrapped(folder))):
        if is_saved_to_disk(place):
            tables, others = read_tables(place, asked.names)
            return _noting_unread(_from_tables(tables, source, asked), others), False
        found = read_metadata(place, asked.names, asked.label)
        if found is not None and found.tables:
            listings = _noting_unread(_from_tables(found.tables, source, asked), found.unread)
            listings = replace(listings, left_out=found.left_out)
            return (listings.as_unsplit() if found.unsplit else listings), False
    return _from_folders(place, asked, () if found is None else found.columns), False


def _from_folders(folder: Path, asked: _Asked, columns: Sequence[str]) -> Listings:
    """The listings of image folders; `columns` are those of a metadata file that gives no labels."""
    if not columns:
        _check_no_columns(folder, asked)
        return read_image_folders(folder, asked.names)
    lacking = f"the metadata file has no column {asked.label or 'label'!r} (its columns are {', '.join(columns)})"
    try:
        if asked.label is not None:
            raise ValueError("its column was named")
        listings = read_image_folders(folder, asked.names)
    except ValueError as error:
        raise ValueError(f"{folder}: {lacking}. Name the right one by label_column.") from error
    return replace(listings, notes=(*listings.notes, f"{lacking}, so the folders are the classes"))


def _noting_unread(listings: Listings, others: Sequence[str]) -> Listings:
    return replace(listings, notes=(*listings.notes, *(f"{name} was not read" for name in others)))


def _images_beside(folder: Path) -> list[str]:
    """Folders with images beside tables, in words: the tables are what is read."""
    if not folder.is_dir():
        return []
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    counts = {path.name: sum(1 for _ in find_images(path, LeftOut(), set())) for path in below}
    return [f"the folder {name!r} with its {count:,} images" for name, count in counts.items() if count]


def _check_no_columns(folder: Path, asked: _Asked) -> None:
    for name, column in (("image_column", asked.image), ("label_column", asked.label)):
        if column is not None:
            raise ValueError(
                f"{folder} holds images in folders or lists and no table, so it has no column {column!r}. Leave {name} out, "
                "or give a folder with parquet files or a metadata.csv that has it."
            )


def _unwrapped(folder: Path) -> Path:
    """The folder, or the only one in it, however deep, where that holds the splits, as in an unpacked archive."""
    inner = folder
    while True:
        below = [path for path in inner.iterdir() if path.is_dir() and not path.name.startswith(".")]
        below = [path for path in below if not is_not_data(path.name)]
        if any(is_split_name(path.name) for path in below):
            return inner
        if len(below) != 1:
            return folder
        inner = below[0]


def _from_tables(tables: Mapping[str, datasets.Dataset], source: str | os.PathLike[str], asked: _Asked) -> Listings:
    images = find_image_columns(tables, asked.image)
    label_names, labels = encode_labels(tables, find_label_columns(tables, asked.label), asked.num_classes)
    listings = {name: Listing(undecoded(table, images[name]), labels[name]) for name, table in tables.items()}
    return Listings(listings["train"], listings.get("validation"), listings.get("test"), label_names, str(source))


def _from_lists(folder: Path, lists: Mapping[str, Path], asked: _Asked) -> Listings:
    _check_no_columns(folder, asked)
    picked = pick(_complete(lists, asked.num_classes), asked.names, folder)
    entries = {
        ours: found if isinstance(found, list) else read_entries(found, ours, asked.num_classes)
        for ours, found in picked.items()
    }
    if lists.get("validation", Path()).name.startswith("unofficial_val_list"):
        entries["validation"] = _without(entries["validation"], entries["train"])
    listings = {ours: list_images(found, folder) for ours, found in entries.items()}
    return Listings(
        listings["train"],
        listings.get("validation"),
        listings.get("test"),
        name_classes(entries.values()),
        str(folder),
    )


def _complete(lists: Mapping[str, Path], num_classes: int | None) -> dict[str, Path | list[Entry]]:
    """The lists, with VTAB-1k's `train800` or `val200` made from the other and `train800val200` where it is missing."""
    missing = {"train800", "val200"} - set(lists)
    if BOTH not in lists or len(missing) != 1:
        return dict(lists)
    there = ({"train800", "val200"} - missing).pop()
    both, part = (read_entries(lists[name], name, num_classes) for name in (BOTH, there))
    return {**lists, missing.pop(): _without(both, part)}


def _without(entries: list[Entry], others: list[Entry]) -> list[Entry]:
    paths = {entry.path for entry in others}
    return [entry for entry in entries if entry.path not in paths]
