"""Further test sets, as domain generalisation has them: the training classes, or some of them, in other images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from datasets import ClassLabel

from peft_noah.data.class_folders import is_not_data, read_class_folders
from peft_noah.data.list_files import Entry, find_lists, list_images, read_entries
from peft_noah.data.listings import Listing
from peft_noah.data.parquet_folders import parquet_files, read_parquet
from peft_noah.data.split_names import ALIASES
from peft_noah.data.table_columns import find_image_column, find_label_column, undecoded
from peft_noah.data.table_files import is_saved_to_disk, load_from_hub, read_saved


def read_other_test(
    name: str,
    source: str | os.PathLike[str],
    label_names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
) -> Listing:
    """The listing of a further test set; its `classes` are those that occur in it, where they are not all.

    Args:
        name: of the test set, for error messages.
        source: a folder of lists (`annotations/val_meta.list`, `test.txt`, ...), whose labels are indices of the training
            classes; a folder of parquet files or of class folders, or a Hub id, whose classes are named as the training
            classes are, or by their numbers (as ImageNet-V2's folders are).
        label_names: the training classes, in order.
        image_column: as for `load_splits`.
        label_column: as for `load_splits`.

    Raises:
        ValueError: the set cannot be read, or has a class that training lacks.
    """
    folder = Path(source).expanduser()
    if is_saved_to_disk(folder):
        listing = _from_tables(name, source, read_saved(folder), label_names, image_column, label_column)
    elif not folder.is_dir():
        listing = _from_tables(name, source, load_from_hub(source), label_names, image_column, label_column)
    elif shards := parquet_files(folder):
        tables = read_parquet(folder, {"test": shards[_one_split(name, source, shards)]})
        listing = _from_tables(name, source, tables, label_names, image_column, label_column)
    elif lists := find_lists(folder):
        file = lists[_one_split(name, source, lists)]
        entries = read_entries(file, "test", len(label_names))
        _check_folders(entries, label_names)
        listing = list_images(entries, folder)
    else:
        listing = _from_class_folders(name, folder, label_names)
    classes = tuple(sorted(set(listing.labels) - {None}))
    return Listing(listing.images, listing.labels, classes if len(classes) < len(label_names) else None)


def _one_split(name: str, source: object, splits: Mapping[str, object]) -> str:
    for alias in (*ALIASES["test"], "val", *ALIASES["validation"]):
        for split in splits:
            if split.lower() == alias:
                return split
    if len(splits) == 1:
        return next(iter(splits))
    raise ValueError(
        f"the test set {name!r}, {source}, has the splits {', '.join(sorted(splits))} and none is named test. Name the "
        "one to test on so."
    )


def _index(name: str, source: object, found: Sequence[str], label_names: Sequence[str]) -> dict[str, int]:
    """The index among the training classes of each class of the set: by name, else by number."""
    known = {label: index for index, label in enumerate(label_names)}
    unknown = [label for label in found if label not in known]
    if not unknown:
        return {label: known[label] for label in found}
    if all(label.isdecimal() and int(label) < len(label_names) for label in found):
        return {label: int(label) for label in found}
    raise ValueError(
        f"the test set {name!r}, {source}, has the class {unknown[0]!r}, which the training images lack (they have "
        f"{', '.join(map(repr, label_names[:3]))}, ... ({len(label_names)} in all)). Name its classes as the training "
        "images do, or by their numbers."
    )


def _check_folders(entries: Sequence[Entry], label_names: Sequence[str]) -> None:
    """Refuse labels counted in another order than the training classes, where the folders tell."""
    known = {label: index for index, label in enumerate(label_names)}
    for entry in entries:
        parts = entry.path.split("/")
        index = known.get(parts[-2]) if len(parts) > 1 else None
        if index is not None and not parts[-2].isdecimal() and index != entry.label:
            raise ValueError(
                f"{entry.where} gives {entry.path!r} the label {entry.label}, but the training class {parts[-2]!r} has "
                f"the label {index}. Number the classes as the training images do."
            )


def _from_tables(
    name: str,
    source: object,
    tables: Mapping[str, datasets.Dataset],
    label_names: Sequence[str],
    image_column: str | None,
    label_column: str | None,
) -> Listing:
    table = tables[_one_split(name, source, tables)]
    image = find_image_column(table.features, f"test {name!r}", image_column)
    label = find_label_column(table.features, f"test {name!r}", label_column)
    feature, values = table.features[label], table[label][:]
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
    found = [str(value) for value in dict.fromkeys(values) if value is not None]
    index = _index(name, source, found, label_names)
    return Listing(undecoded(table, image), [None if value is None else index[str(value)] for value in values])


def _from_class_folders(name: str, folder: Path, label_names: Sequence[str]) -> Listing:
    top, below = folder, _folders(folder)
    if "test" in {path.name for path in below} - set(label_names):
        top, below = top / "test", _folders(top / "test")
    while len(below) == 1 and below[0].name not in label_names:  # imagenet-adversarial/imagenet-a/n01498041/
        top, below = below[0], _folders(below[0])
    found = read_class_folders(top, f"test {name!r}")
    found.left_out.log(f"test {name!r}", top)
    if not found.files:
        raise ValueError(
            f"the test set {name!r}, {folder}, holds no images in class folders. Give a folder of lists, parquet files or "
            "class folders."
        )
    index = _index(name, top, list(found.files), label_names)
    rows = found.in_order()
    return Listing([{"bytes": None, "path": path} for path, _ in rows], [index[label] for _, label in rows])


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_not_data(path.name))
