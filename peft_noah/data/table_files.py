"""Tables by `datasets`: from a folder of parquet files, what `save_to_disk` wrote, or the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME

from peft_noah import sources
from peft_noah.data.dataset_errors import reading
from peft_noah.data.parquet_folders import choose_config, parquet_configs, read_parquet
from peft_noah.data.split_names import is_split_name, pick, unread


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
        files = choose_config(folder, configs, default, config)
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
