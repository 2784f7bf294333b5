"""Tables of images and labels, by `datasets`: parquet files, folders of images, the Hub."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from peft_noah import sources
from peft_noah.data.split_names import pick


def read_tables(source: str | os.PathLike[str], names: Mapping[str, str | None]) -> dict[str, datasets.Dataset]:
    """The undecoded table of each of our splits that the source has, all needed ones being there.

    Raises:
        ValueError: the source is no folder and no Hub id, cannot be read, or misses a split.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        parquet = parquet_files(folder)
        return read_parquet(folder, pick(parquet, names, folder)) if parquet else _read_images(folder, names)
    return pick(load_from_hub(source), names, source)


def load_from_hub(source: str | os.PathLike[str]) -> Mapping[str, datasets.Dataset]:
    """All splits of a Hub dataset, `owner/name` or `owner/name:config`.

    Raises:
        ValueError: it is no Hub id but a folder that does not exist, or it cannot be read.
    """
    if not is_hub_id(source):
        raise ValueError(
            f"there is no folder {str(source)!r}. Give a folder of parquet files or images, or a dataset's Hub id."
        )
    with _reading(f"{source} (no folder here, so a Hub id)"):
        return datasets.load_dataset(*str(source).split(":"))


def hub_configs(source: str) -> list[str]:
    """The names of a Hub dataset's configs.

    Raises:
        ValueError: the dataset cannot be reached.
    """
    with _reading(f"{source} (no folder here, so a Hub id)"):
        return list(datasets.get_dataset_config_names(source))


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether a source can only be a Hub id: `owner/name` or `owner/name:config`, and no path."""
    if isinstance(source, os.PathLike) or os.path.exists(source):
        return False
    name, _, config = source.partition(":")
    return sources.is_hub_id(name) and re.fullmatch(r"[\w.-]*", config) is not None


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder by split name, shards in order."""
    found = defaultdict(list)
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        found[re.sub(r"-\d+-of-\d+$", "", file.stem)].append(file)
    return found


# The two readers below avoid load_dataset, which sends a request to a server even for local files.


def read_parquet(folder: Path, shards: Mapping[str, Sequence[Path]]) -> dict[str, datasets.Dataset]:
    """The table of each split from its parquet files."""
    # Split by split: read together, datasets would relabel every split by the label names of the first.
    tables = {}
    for name, files_of_split in shards.items():
        with _reading(folder):
            empty = not any(pq.read_metadata(file).num_rows for file in files_of_split)
        if empty:  # datasets cannot make a table without rows
            raise ValueError(_empty(name, folder))
        with _reading(folder):
            tables[name] = datasets.Dataset.from_parquet([escape(str(file)) for file in files_of_split])
    return tables


def _read_images(folder: Path, names: Mapping[str, str | None]) -> dict[str, datasets.Dataset]:
    folders = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise ValueError(
            f"{folder} holds neither parquet files nor folders of images. Give train.parquet and test.parquet, or "
            "train/<class>/ and test/<class>/ with images."
        )
    picked = pick(folders, names, folder)
    for name, path in picked.items():
        if not any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in path.rglob("*")):
            raise ValueError(_empty(name, folder))
    with _reading(folder):
        # drop_labels=False: with one class folder datasets would otherwise leave the labels out.
        patterns = {name: f"{escape(str(path))}/**" for name, path in picked.items()}
        builder = ImageFolder(data_files=patterns, drop_labels=False)
        builder.download_and_prepare()
        tables = dict(builder.as_dataset())
    _check_class_folders(tables, folder)
    return tables


def _empty(name: str, source: object) -> str:
    return f"the {name} split of {source} is empty. Give at least one labelled image."


def _check_class_folders(tables: Mapping[str, datasets.Dataset], folder: Path) -> None:
    """Refuse class folders that training lacks, such as a misspelt one: each would become a class of its own."""
    if any("label" not in table.features for table in tables.values()):
        return  # labels come from a metadata file
    names = tables["train"].features["label"].names
    used = {name: set(table["label"][:]) for name, table in tables.items()}
    for split, labels in used.items():
        if extra := sorted(labels - used["train"]):
            raise ValueError(
                f"the {split} split of {folder} has the class folder {names[extra[0]]!r}, which the training images "
                "lack. Name the class folders of all splits alike."
            )


@contextmanager
def _reading(source: object) -> Iterator[None]:
    """Turn whatever reading a dataset raises into one ValueError, and keep datasets' progress bars off our log."""
    _check_cache()
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # datasets, pyarrow and the Hub client share no base class for what they raise
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise ValueError(
            f"cannot read the dataset {source}: {lines[0] if lines else type(error).__name__}. Give a folder of "
            "parquet files or images, or the id of a Hub dataset that is reachable or in the cache."
        ) from error
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _check_cache() -> None:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"the datasets library cannot write its cache, {cache}. Set HF_DATASETS_CACHE to a folder that can be "
            "written."
        )


def undecoded(table: datasets.Dataset, image_column: str) -> datasets.Column:
    """The images of a table as `{"bytes": ..., "path": ...}`."""
    return table.cast_column(image_column, Image(decode=False))[image_column]


def columns(table: datasets.Dataset, split: str, image: str | None, label: str | None) -> tuple[str, str]:
    """Names of the image and the label column: as asked, else the one of fitting type.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    features = table.features
    for kind, asked in (("image", image), ("label", label)):
        if asked is not None and asked not in features:
            raise ValueError(_no_column(kind, f"no column {asked!r}", split, features))
    images = [name for name, feature in features.items() if _is_image(feature) and image in (None, name)]
    if len(images) != 1:
        found = f"{len(images)} columns of images" if images else "no column of encoded images"
        raise ValueError(_no_column("image", found, split, features))
    if label is not None:
        return images[0], label
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels = [name for name in labels if len(labels) == 1 or name == "label"] or (
        ["label"] if "label" in features and not labels else []
    )
    if len(labels) != 1:
        raise ValueError(_no_column("label", "no single column of labels", split, features))
    return images[0], labels[0]


def _is_image(feature: Any) -> bool:
    """Whether a column can be decoded as images: datasets' Image, or the same bytes in a plain parquet file."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and feature.get("bytes") == Value("binary"))


def _no_column(kind: str, found: str, split: str, features: Features) -> str:
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    return f"the {split} split has {found}; its columns are {columns}. Name the right one by {kind}_column."


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def encode_labels(
    tables: Mapping[str, datasets.Dataset], columns: Mapping[str, str], num_classes: int | None = None
) -> tuple[tuple[str, ...], dict[str, list[int | None]]]:
    """Class names and, per split, class indices; where the data has no names, the training split's values are them.

    Where `num_classes` is known, whole numbers are indices already, up to the largest in any split: 800 images need not
    show all of 397 classes.

    Raises:
        ValueError: the splits' labels differ in names, type or values, or are of a type that no class has.
    """
    features = {name: tables[name].features[column] for name, column in columns.items()}
    values = {name: tables[name][column][:] for name, column in columns.items()}
    first = features["train"]
    for name, feature in features.items():
        if feature != first:
            raise ValueError(
                f"the labels of the {name} split differ from those of the train split: {_difference(feature, first)}. "
                "Give all splits the same label names in the same order."
            )
    if isinstance(first, ClassLabel):
        return tuple(first.names), values
    if _type_name(first) not in ("string", "large_string", "bool") and "int" not in _type_name(first):
        raise ValueError(
            f"the label column {columns['train']!r} holds {_type_name(first)}: allowed are class labels, integers and "
            "strings. Name another by label_column."
        )
    if num_classes is not None and "int" in _type_name(first):
        largest = max((value for labels in values.values() for value in labels if value is not None), default=0)
        return tuple(map(str, range(min(largest + 1, num_classes)))), values
    known = sorted({value for value in values["train"] if value is not None and value != -1})
    index = {value: position for position, value in enumerate(known)}
    for name, labels in values.items():
        unknown = [value for value in dict.fromkeys(labels) if value not in index and value not in (None, -1)]
        if unknown:
            raise ValueError(
                f"the {name} split has the label {unknown[0]!r}, which no training image has. Add training images of "
                "it, or remove its images."
            )
    encoded = {name: [index.get(value, value) for value in labels] for name, labels in values.items()}
    return tuple(map(str, known)), encoded


def _difference(feature: Any, train: Any) -> str:
    if not (isinstance(feature, ClassLabel) and isinstance(train, ClassLabel)):
        return f"{_type_name(feature)} against {_type_name(train)}"
    pairs = zip_longest(feature.names, train.names)
    index, (name, name_in_train) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {name!r} against {name_in_train!r}"
