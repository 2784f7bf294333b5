"""Tables of images and labels, by `datasets`: parquet files, folders of images, the Hub."""

from __future__ import annotations

import logging
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
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.data_files import DataFilesDict, sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from peft_noah import sources
from peft_noah.data.class_names import look_alike
from peft_noah.data.partial_downloads import check_files
from peft_noah.data.split_names import is_split_name, pick, unread

logger = logging.getLogger(__name__)

#: the config of a folder that has one only
DEFAULT = "default"
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
_PART = re.compile(r"[-._ ]+\d+$")
_ENDING = "".join(f"[{letter}{letter.upper()}]" for letter in "parquet")


def read_tables(
    source: str | os.PathLike[str], names: Mapping[str, str | None], config: str | None = None
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The undecoded table of each of our splits that the source has, all needed ones being there, and what is not read.

    A dataset saved by `save_to_disk` that is one table has one split, which is called the training split.

    Raises:
        ValueError: the source is no folder and no Hub id, cannot be read, or misses a split.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and not is_saved_to_disk(folder):
        configs, default = parquet_configs(folder)
        files = _choose(folder, configs, default, config)
        picked = pick(files, names, folder)
        others = [f"the split {name!r}" for name in unread(files, picked)]
        others += [f"the config {name!r}" for name, splits in configs.items() if splits is not files]
        return read_parquet(folder, picked, config), others
    if folder.is_dir() and config is not None:
        raise ValueError(
            f"{folder} was saved by save_to_disk and has no configs. Leave dataset_config {config!r} out."
        )
    found = read_saved(folder) if folder.is_dir() else load_from_hub(source, config)
    picked = pick(found, names, source)
    return picked, [f"the split {name!r}" for name in unread(found, picked)]


def load_from_hub(source: str | os.PathLike[str], config: str | None = None) -> Mapping[str, datasets.Dataset]:
    """All splits of a Hub dataset, `owner/name` or `owner/name:config`.

    Raises:
        ValueError: it is no Hub id but a file, or a folder that does not exist, two configs are named, or it cannot be read.
    """
    if Path(source).expanduser().is_file():
        raise ValueError(
            f"{str(source)!r} is a file, and images are read from a folder. Give the folder that it lies in; a file of texts "
            "needs --task text-classification."
        )
    if not is_hub_id(source):
        raise ValueError(
            f"there is no folder {str(source)!r}. Give a folder of parquet files or images, or a dataset's Hub id."
        )
    name, _, named = str(source).partition(":")
    if named and config not in (None, named):
        raise ValueError(
            f"the dataset {source!r} names the config {named!r}, and dataset_config is {config!r}. Name one."
        )
    with reading(f"{source} (no folder here, so a Hub id)"):
        return datasets.load_dataset(*filter(None, (name, named or config)))


def hub_configs(source: str) -> list[str]:
    """The names of a Hub dataset's configs.

    Raises:
        ValueError: the dataset cannot be reached.
    """
    with reading(f"{source} (no folder here, so a Hub id)"):
        return list(datasets.get_dataset_config_names(source))


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether a source can only be a Hub id: `owner/name` or `owner/name:config`, and no path."""
    if isinstance(source, os.PathLike) or os.path.exists(source):
        return False
    name, _, config = source.partition(":")
    return sources.is_hub_id(name) and re.fullmatch(r"[\w.-]*", config) is not None


def is_saved_to_disk(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of a dataset or of several by split, or holds such folders by split."""
    whole = (folder / DATASETDICT_JSON_FILENAME).is_file() or is_one_table(folder)
    return whole or any(map(is_split_name, _saved_below(folder)))


def _saved_below(folder: Path) -> dict[str, Path]:
    """Folders written by `save_to_disk` of one dataset each, by name."""
    return {path.name: path for path in sorted(folder.glob("*")) if is_one_table(path)}


def is_one_table(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of one dataset, which has no splits."""
    return (folder / DATASET_STATE_JSON_FILENAME).is_file()


def read_saved(folder: Path) -> dict[str, datasets.Dataset]:
    """The tables that `save_to_disk` wrote, by split; a single one is called the training split."""
    with reading(folder):
        if (folder / DATASETDICT_JSON_FILENAME).is_file() or is_one_table(folder):
            saved = datasets.load_from_disk(os.path.abspath(folder))
            tables = {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
        else:
            tables = {name: datasets.load_from_disk(path.absolute()) for name, path in _saved_below(folder).items()}
    return {split: table.with_format(None) for split, table in tables.items()}  # it may be saved as torch's


def parquet_files(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """Parquet files of a folder by split name, shards in order.

    Args:
        folder: of the dataset.
        config: which of several configs; None: the only one, or the one that is the default.

    Raises:
        ValueError: there is no such config, or several and none is the default; they are listed.
    """
    configs, default = parquet_configs(folder)
    return {} if not configs and config is None else _choose(folder, configs, default, config)


def _choose(
    folder: Path, configs: Mapping[str, dict[str, list[Path]]], default: str | None, config: str | None
) -> dict[str, list[Path]]:
    chosen = default if config is None else config
    if chosen not in configs:
        asked = "holds several configs" if config is None else f"has no config {config!r}"
        raise ValueError(
            f"{folder} {asked}: it has {', '.join(sorted(configs)) or 'no parquet files'}. Choose one by dataset_config."
        )
    return configs[chosen]


def parquet_configs(folder: Path) -> tuple[dict[str, dict[str, list[Path]]], str | None]:
    """Parquet files of a folder by config and split, and the config that is taken unless another is named.

    The configs are those of the YAML in README.md, as `datasets` reads it; else one for each folder that holds splits:
    `train-00000-of-00001.parquet`, `data/train-00000-of-00001-<hash>.parquet` and `train/0000.parquet` are of the config
    `default`, `fine/train-00000-of-00001.parquet` and `fine/train/0000.parquet` of the config `fine`.
    """
    files = sorted(file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(f"{depth}.{_ENDING}"))
    files = [file for file in files if file.name != "metadata.parquet" and not file.is_dir()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files:
        return {}, None
    if card_configs := _card_configs(folder):
        return card_configs
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        folders = [name for name in file.relative_to(folder).parts[:-1] if name != "data"]
        if folders and folders[-1].lower().endswith(".parquet"):  # train.parquet/part-0.parquet, as Spark writes
            folders[-1] = folders[-1][: -len(".parquet")]
        split = _SHARD.sub("", file.stem)
        if folders and (is_split_name(folders[-1]) or split.isdecimal()):  # train/0000.parquet
            split = folders.pop()
        elif is_split_name(whole := _PART.sub("", split)):  # train_0.parquet
            split = whole
        found["/".join(folders) or DEFAULT][split].append(file)
    return found, next(iter(found)) if len(found) == 1 else DEFAULT


def _card_configs(folder: Path) -> tuple[dict[str, dict[str, list[Path]]], str | None] | None:
    """The configs that README.md lists with parquet files; None: it lists none."""
    with reading(folder):
        listed = MetadataConfigs.from_dataset_card_data(_card(folder))
        default = listed.get_default_config_name()
    found = {}
    for name, values in listed.items():
        if (data_files := values.get("data_files")) is None:
            continue
        patterns = sanitize_patterns(data_files)
        _check_patterns(folder, patterns)
        with reading(folder):
            base = escape(os.path.join(os.path.abspath(folder), values.get("data_dir") or ""))
            resolved = DataFilesDict.from_patterns(patterns, base_path=base, allowed_extensions=[".parquet"])
        found[name] = {split: [Path(file) for file in files] for split, files in resolved.items() if files}
    found = {name: splits for name, splits in found.items() if splits}
    return (found, next(iter(found)) if len(found) == 1 else default) if found else None


def _card(folder: Path) -> DatasetCardData:
    """What the YAML in README.md says; nothing where there is none, or where it cannot be read, which is logged."""
    path = folder / "README.md"
    if not path.is_file():
        return DatasetCardData()
    try:
        with path.open("rb") as file:
            if not file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"---"):
                return DatasetCardData()  # a README without YAML, which the Hub's client would print a warning about
        return DatasetCard.load(path, ignore_metadata_errors=True).data
    except Exception as error:  # whatever a YAML or text decoder raises
        logger.warning("%s: the YAML in it cannot be read and is left out (%s)", path, str(error).split("\n")[0])
        return DatasetCardData()


def _check_patterns(folder: Path, patterns: Mapping[str, Sequence[str]]) -> None:
    for pattern in (pattern for of_split in patterns.values() for pattern in of_split):
        if "://" in pattern or "::" in pattern or os.path.isabs(pattern) or ".." in Path(pattern).parts:
            raise ValueError(
                f"README.md of {folder} names the files {pattern!r}, which lead out of that folder: this is refused. Give "
                "paths relative to it."
            )


# What is read from a folder avoids load_dataset, which sends a request to a server even for local files.


def read_parquet(
    folder: Path, shards: Mapping[str, Sequence[Path]], config: str | None = None
) -> dict[str, datasets.Dataset]:
    """The table of each split from its parquet files; README.md may name the classes where the files do not."""
    class_labels = _class_labels(folder, config)
    # Split by split: read together, datasets would relabel every split by the label names of the first.
    tables = {}
    for name, files_of_split in shards.items():
        check_files(files_of_split)
        if not any(_count_rows(folder, file) for file in files_of_split):  # datasets cannot make a table without rows
            raise ValueError(f"the {name} split of {folder} is empty. Give at least one labelled image.")
        with reading(folder):
            table = datasets.Dataset.from_parquet([escape(str(file)) for file in files_of_split])
            tables[name] = _with_names(table, class_labels)
    return tables


def _count_rows(folder: Path, file: Path) -> int:
    with reading(folder, os.path.relpath(file, folder)):
        return pq.read_metadata(file).num_rows


def _class_labels(folder: Path, config: str | None) -> dict[str, ClassLabel]:
    """The label columns whose class names README.md gives, by `dataset_info`."""
    with reading(folder):
        infos = DatasetInfosDict.from_dataset_card_data(_card(folder))
    chosen = config or (next(iter(infos)) if len(infos) == 1 else DEFAULT)
    features = infos[chosen].features if chosen in infos else None
    return {name: feature for name, feature in (features or {}).items() if isinstance(feature, ClassLabel)}


def _with_names(table: datasets.Dataset, class_labels: Mapping[str, ClassLabel]) -> datasets.Dataset:
    """The table, its numbered labels named where nothing in it names them."""
    for name, feature in class_labels.items():
        if name in table.features and _kind(table.features[name]) == "integer":
            table = table.cast_column(name, feature)
    return table


@contextmanager
def reading(source: object, file: str = "", give: str = "parquet files or images") -> Iterator[None]:
    """Turn whatever reading a dataset, or one file of it, raises into one ValueError, and keep datasets' progress bars off
    our log."""
    _check_cache()
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # datasets, pyarrow and the Hub client share no base class for what they raise
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        if lines[1:] and "available configs" in lines[1]:
            lines[0] = f"{lines[0]} {lines[1]}. Choose one by dataset_config"
        raise ValueError(
            f"cannot read the dataset {source}: {file and f'{file}: '}{lines[0].rstrip('.') if lines else type(error).__name__}. Give a folder of "
            f"{give}, or the id of a Hub dataset that is reachable or in the cache."
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


def columns(
    table: datasets.Dataset, split: str, image: str | None, label: str | None, texts: bool = False
) -> tuple[str, str]:
    """Names of the image or text and the label column: as asked, else the one of fitting type.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    name = _label_column(table.features, split, label) if texts else None
    sample = _sample_column(table.features, split, image, name, texts)
    return sample, name or _label_column(table.features, split, label)


def columns_by_split(
    tables: Mapping[str, datasets.Dataset], image: str | None, label: str | None, texts: bool = False
) -> dict[str, tuple[str, str | None]]:
    """The same for each split, of texts where there are no images; the label is None where validation or test have none of the training images' column.

    Raises:
        ValueError: as `columns`.
    """
    found: dict[str, tuple[str, str | None]] = {"train": columns(tables["train"], "train", image, label, texts)}
    for split, table in tables.items():
        if split != "train":
            name = found["train"][1]
            if label is None and name not in table.features and _label_candidates(table.features):
                name = _label_column(table.features, split, None)
            name = name if name in table.features else None
            found[split] = (_sample_column(table.features, split, image, name, texts), name)
    return found


def text_column_of(table: datasets.Dataset, split: str, asked: str | None) -> str:
    """Name of the column of texts of a table without labels, or with some: as asked, else the one that there is.

    Raises:
        ValueError: there is none, or more than one that could be meant.
    """
    return _text_column(table.features, split, asked, "label")


def _sample_column(features: Features, split: str, asked: str | None, label: str | None, texts: bool) -> str:
    return _text_column(features, split, asked, label) if texts else _image_column(features, split, asked)


def _text_column(features: Features, split: str, asked: str | None, label: str | None) -> str:
    if asked is not None:
        if asked not in features or _kind(features[asked]) != "text":
            fault = "column" if asked not in features else "column of texts"
            raise ValueError(_no_column("text", f"no {fault} {asked!r}", split, features))
        return asked
    found = [name for name, feature in features.items() if name != label and _kind(feature) == "text"]
    if len(found) != 1 and "text" not in found:
        what = f"{len(found)} columns of texts" if found else "no column of texts"
        raise ValueError(_no_column("text", what, split, features))
    return "text" if "text" in found else found[0]


def _image_column(features: Features, split: str, asked: str | None) -> str:
    if asked is not None:
        if asked not in features:
            raise ValueError(_no_column("image", f"no column {asked!r}", split, features))
        if not _is_image(features[asked]) and not _is_binary(features[asked]):
            raise ValueError(_no_column("image", f"no column of encoded images {asked!r}", split, features))
        return asked
    images = [name for name, feature in features.items() if _is_image(feature)]
    if len(images) != 1:
        found = f"{len(images)} columns of images" if images else "no column of encoded images"
        raise ValueError(_no_column("image", found, split, features))
    return images[0]


def _label_column(features: Features, split: str, asked: str | None) -> str:
    if asked is not None:
        if asked not in features:
            raise ValueError(_no_column("label", f"no column {asked!r}", split, features))
        return asked
    labels = _label_candidates(features)
    if len(labels) != 1:
        raise ValueError(_no_column("label", "no single column of labels", split, features))
    return labels[0]


def _label_candidates(features: Features) -> list[str]:
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not labels:
        return ["label"] if "label" in features else []
    return ["label"] if "label" in labels else labels


def _is_image(feature: Any) -> bool:
    """Whether a column can be decoded as images: datasets' Image, or the same bytes in a plain parquet file."""
    return isinstance(feature, Image) or (isinstance(feature, dict) and _is_binary(feature.get("bytes")))


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _no_column(kind: str, found: str, split: str, features: Features) -> str:
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    return f"the {split} split has {found}; its columns are {columns}. Name the right one by {kind}_column."


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def encode_labels(
    tables: Mapping[str, datasets.Dataset],
    columns: Mapping[str, str | None],
    num_classes: int | None = None,
    what: str = "image",
) -> tuple[tuple[str, ...], dict[str, list[int | None]]]:
    """Class names and, per split, class indices; where the data has no names, the training split's values are them.

    Whole numbers are alike whatever their width, and so are texts. Where `num_classes` is known, whole numbers are
    indices already, up to the largest in any split: 800 images need not show all of 397 classes. A split without a
    column of labels, or with none that is not -1, has only labels of None.

    Raises:
        ValueError: the splits' labels differ in names, type or values, or are of a type that no class has.
    """
    values = {
        name: [None] * len(tables[name]) if column is None else tables[name][column][:]
        for name, column in columns.items()
    }
    values = {name: _known(_cleaned(labels), name) for name, labels in values.items()}
    features = {
        name: tables[name].features[column]
        for name, column in columns.items()
        if name == "train" or any(label is not None for label in values[name])
    }
    first, kind = features["train"], _kind(features["train"])
    for name, feature in features.items():
        if _kind(feature) != kind:
            raise ValueError(
                f"the labels of the {name} split differ from those of the train split: {_difference(feature, first)}. "
                "Give all splits the same label names in the same order."
            )
    if isinstance(first, ClassLabel):
        return tuple(first.names), values
    if kind not in _KINDS:
        missing = sum(label is None for label in values["train"])
        why = (
            f" ({missing:,} are missing, so whole numbers are stored as floats)" if kind in _FLOATS and missing else ""
        )
        raise ValueError(
            f"the label column {columns['train']!r} holds {_type_name(first)}{why}: allowed are class labels, whole numbers, "
            "strings and booleans. Name another by label_column."
        )
    if num_classes is not None and kind == "integer":
        largest = max((value for labels in values.values() for value in labels if value is not None), default=0)
        return tuple(map(str, range(min(largest + 1, num_classes)))), values
    known = sorted({value for value in values["train"] if value is not None and value != -1})
    index = {value: position for position, value in enumerate(known)}
    for name, labels in values.items():
        unknown = [value for value in dict.fromkeys(labels) if value not in index and value not in (None, -1)]
        if unknown:
            raise ValueError(
                f"the {name} split has the label {unknown[0]!r}, which no training {what} has."
                f"{look_alike(str(unknown[0]), map(str, known))} Add training {what}s of it, or remove its {what}s."
            )
    encoded = {name: [index.get(value, value) for value in labels] for name, labels in values.items()}
    return tuple(map(str, known)), encoded


def _cleaned(labels: list[Any]) -> list[Any]:
    """The labels; None for NaN and for a text without letters."""
    return [None if label != label or (isinstance(label, str) and not label.strip()) else label for label in labels]


def _known(labels: list[Any], split: str) -> list[Any]:
    """The labels; all None where validation or test have none but missing ones."""
    missing = (label is None or label == -1 for label in labels)
    return [None] * len(labels) if split != "train" and all(missing) else labels


_KINDS = ("integer", "text", "bool")
_FLOATS = ("float16", "float32", "float64")


def _kind(feature: Any) -> Any:
    """What the labels of a column are, whatever the width of their type."""
    if not isinstance(feature, Value):
        return feature
    if re.fullmatch(r"u?int\d+", feature.dtype):
        return "integer"
    return "text" if feature.dtype in ("string", "large_string", "string_view") else feature.dtype


def _difference(feature: Any, train: Any) -> str:
    if not (isinstance(feature, ClassLabel) and isinstance(train, ClassLabel)):
        return f"{_type_name(feature)} against {_type_name(train)}"
    pairs = zip_longest(feature.names, train.names)
    index, (name, name_in_train) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {index} is {name!r} against {name_in_train!r}"
