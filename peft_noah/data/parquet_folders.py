"""Folders of parquet files as Hub repositories have them: which file is of which config and split, and what README.md says.

Nothing here calls `load_dataset`, which sends a request to a server even for local files.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from datasets import ClassLabel
from datasets.data_files import DataFilesDict, sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from peft_noah.data.dataset_errors import reading
from peft_noah.data.partial_downloads import check_files
from peft_noah.data.split_names import is_split_name
from peft_noah.data.table_columns import kind_of

logger = logging.getLogger(__name__)

#: the config of a folder that has one only
_DEFAULT = "default"
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
_PART = re.compile(r"[-._ ]+\d+$")
_ENDING = "".join(f"[{letter}{letter.upper()}]" for letter in "parquet")


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files of a folder by split name, shards in order, of its only config or the one that is the default.

    Raises:
        ValueError: there are several configs and none is the default; they are listed.
    """
    configs, default = parquet_configs(folder)
    return choose_config(folder, configs, default, None) if configs else {}


def choose_config(
    folder: Path, configs: Mapping[str, dict[str, list[Path]]], default: str | None, config: str | None
) -> dict[str, list[Path]]:
    """The files by split of the config that is asked for; None: of the default.

    Raises:
        ValueError: there is none; those that are there are listed.
    """
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
        found["/".join(folders) or _DEFAULT][split].append(file)
    return found, next(iter(found)) if len(found) == 1 else _DEFAULT


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
    chosen = config or (next(iter(infos)) if len(infos) == 1 else _DEFAULT)
    features = infos[chosen].features if chosen in infos else None
    return {name: feature for name, feature in (features or {}).items() if isinstance(feature, ClassLabel)}


def _with_names(table: datasets.Dataset, class_labels: Mapping[str, ClassLabel]) -> datasets.Dataset:
    """The table, its numbered labels named where nothing in it names them."""
    for name, feature in class_labels.items():
        if name in table.features and kind_of(table.features[name]) == "integer":
            table = table.cast_column(name, feature)
    return table
