"""Where a run's images come from: parquet files, folders of images, the Hub, or the task shipped with the package."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from peft_noah.images import ImageSplit
from peft_noah.preprocessing import Normalizer, Preprocessing
from peft_noah.splits import Listing, Splits, build_splits

__all__ = [
    "ImageSplit",
    "Listing",
    "Normalizer",
    "Preprocessing",
    "Splits",
    "build_splits",
    "bundled_backbone",
    "bundled_task",
    "load_splits",
]

_VALIDATION_NAMES = ("validation", "val", "valid", "dev")


def bundled_task() -> Path:
    """Folder of the task shipped with the package: Fashion-MNIST, 800 / 200 / 2,000 images."""
    return Path(str(files(__package__).joinpath("assets", "fashion_mnist")))


def bundled_backbone() -> Path:
    """Folder of the pretrained backbone shipped with the package: a ViT of 12 blocks for 64 x 64 pixels."""
    return Path(str(files(__package__).joinpath("assets", "vit-tiny-64")))


def load_splits(
    source: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str = "test",
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_gb: float = 4.0,
) -> Splits:
    """Train, validation and test splits of a labelled image dataset, decoded and resized once.

    Args:
        source: a folder of parquet files (`train.parquet`, `train-00000-of-00002.parquet`), at the top or in `data/`;
            a folder of images (`train/<class>/*.png`, also `val/`, `test/`); or a dataset's Hub id.
        preprocessing: the run's resize, crop and normalisation.
        image_column: the column of images; found by its type where None.
        label_column: the column of classes; found by its type, or the name `label`, where None.
        train_split: name of the training split.
        validation_split: name of the validation split (`val`, `valid` and `dev` stand in for `validation`). None, or
            "validation" where there is none: split off the training images, with as many of each class as fits.
        test_split: name of the test split.
        validation_fraction: share of the training images to split off where validation is missing, no unit.
        seed: seed of that choice.
        cache_gb: most memory decoded images may take, in gigabytes (10^9 bytes); splits beyond it (the test split
            last) are decoded whenever they are fetched, with the same values.

    Raises:
        ValueError: source, split or column is missing or ambiguous; a split is empty; there are fewer than two
            classes; a label is missing or out of range or its names differ over splits; an image is corrupt, too
            large or made of floats.
    """
    names = {"train": train_split, "validation": validation_split, "test": test_split}
    if len(set(names.values())) != 3:
        raise ValueError(f"the splits {names} are not three different ones. Test images must not be trained on.")
    tables = _read_tables(source, names)
    columns = {name: _columns(table, name, image_column, label_column) for name, table in tables.items()}
    label_names, labels = _encode_labels(tables, {name: column for name, (_, column) in columns.items()})
    listings = {
        name: Listing(table.cast_column(columns[name][0], Image(decode=False))[columns[name][0]], labels[name])
        for name, table in tables.items()
    }
    return build_splits(
        listings["train"],
        listings.get("validation"),
        listings["test"],
        label_names,
        preprocessing,
        source=str(source),
        validation_fraction=validation_fraction,
        seed=seed,
        cache_gb=cache_gb,
    )


def _read_tables(source: str | os.PathLike[str], names: Mapping[str, str | None]) -> dict[str, datasets.Dataset]:
    """The undecoded table of each of our splits that the source has, all needed ones being there."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        parquet = _parquet_files(folder)
        return _read_parquet(folder, _pick(parquet, names, folder)) if parquet else _read_images(folder, names)
    is_path = isinstance(source, os.PathLike) or folder.exists() or str(source).startswith(".")
    if is_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise ValueError(
            f"there is no folder {str(source)!r}. Give a folder of parquet files or images, or a dataset's Hub id."
        )
    with _reading(f"{source} (no folder here, so a Hub id)"):
        tables = datasets.load_dataset(str(source))
    return _pick(tables, names, source)


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder by split name, shards in order."""
    found = defaultdict(list)
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        found[re.sub(r"-\d+-of-\d+$", "", file.stem)].append(file)
    return found


# The two readers below avoid load_dataset, which sends a request to a server even for local files.


def _read_parquet(folder: Path, shards: Mapping[str, Sequence[Path]]) -> dict[str, datasets.Dataset]:
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
    picked = _pick(folders, names, folder)
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


def _pick(available: Mapping[str, Any], names: Mapping[str, str | None], source: object) -> dict[str, Any]:
    """What is available under the names of our splits; validation alone may be missing, unless named on purpose."""
    picked = {}
    for ours, theirs in names.items():
        aliases = _VALIDATION_NAMES if theirs == "validation" else (theirs,)
        found = [alias for alias in aliases if alias in available]
        if found:
            picked[ours] = available[found[0]]
        elif theirs not in (None, "validation"):
            raise ValueError(
                f"{source} has no split {theirs!r}; it has {', '.join(sorted(available)) or 'none'}. Add it, or name "
                f"another by {ours}_split."
            )
    return picked


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


def _columns(table: datasets.Dataset, split: str, image: str | None, label: str | None) -> tuple[str, str]:
    """Names of the image and the label column: as asked, else the one of fitting type."""
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


def _encode_labels(
    tables: Mapping[str, datasets.Dataset], columns: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, list[int | None]]]:
    """Class names and, per split, class indices; where the data has no names, the training split's values are them."""
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
