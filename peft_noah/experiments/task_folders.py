"""Folders of tasks, one folder each, or a dataset on the Hub with one config per task."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft_noah.data.class_folders import is_not_data, is_of_a_run
from peft_noah.data.list_files import find_lists
from peft_noah.data.parquet_folders import parquet_configs
from peft_noah.data.table_files import hub_configs, is_hub_id, is_saved_to_disk

logger = logging.getLogger(__name__)


def task_sources(root: str | os.PathLike[str]) -> dict[str, str]:
    """The source of every task of a folder by its name; of a Hub dataset, of every config."""
    below, folder = _below(root), Path(root).expanduser()
    if not folder.is_dir():
        return below
    found = {name: source for name, source in below.items() if _is_task(Path(source))}
    if not found:
        hint = "It is a task itself: run it alone. " if _is_task(folder) else ""
        raise ValueError(f"{folder} holds no folder of a task. {hint}Give a folder with one folder per task.")
    if left := [name for name in below if name not in found]:
        logger.warning("%s: no task in %s, left out", folder, ", ".join(left))
    return found


def _below(root: str | os.PathLike[str]) -> dict[str, str]:
    """What may be a task in a folder, or in a Hub dataset with one config per task: its source by its name."""
    folder = Path(root).expanduser()
    if folder.is_dir():
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return {path.name: str(path) for path in below if not (is_not_data(path.name) or is_of_a_run(path))}
    if "/" in str(root) and is_hub_id(root):
        return {config: f"{root}:{config}" for config in hub_configs(str(root))}
    raise ValueError(f"there is no folder {str(root)!r}. Give a folder with one folder per task.")


def _is_task(folder: Path) -> bool:
    """Whether a folder looks like a task: parquet files, lists, or folders of images by split (or by class)."""
    if is_saved_to_disk(folder) or parquet_configs(folder)[0] or lists_shots(folder):
        return True
    return bool(find_lists(folder)) or any(path.is_dir() for path in folder.iterdir())


def lists_shots(source: str | Path) -> bool:
    """Whether a task has lists of images for numbers of shots."""
    folder = Path(source)
    return (folder / "annotations").is_dir() or any(folder.glob("split_*.json"))


def folders_by_task(
    root: str | os.PathLike[str], aliases: Mapping[str, Sequence[str]], names: Sequence[str] | None, what: str
) -> dict[str, str]:
    """The source of each task that is wanted, found by any of its names."""
    wanted = list(aliases) if names is None else [_canonical(name, aliases, what) for name in names]
    found: dict[str, str] = {}
    for below, source in _below(root).items():
        for name in wanted:
            if plain(below) not in aliases[name]:
                continue
            if name in found:
                raise ValueError(f"{root} has two folders for task {name!r}: {found[name]} and {source}.")
            found[name] = source
    if missing := [name for name in wanted if name not in found]:
        known = "; ".join(f"{name} (as {' or '.join(aliases[name])})" for name in missing)
        raise ValueError(f"{root} misses {len(missing)} of {len(wanted)} tasks of {what}: {known}. Add their folders.")
    return {name: found[name] for name in wanted}


def _canonical(name: str, aliases: Mapping[str, Sequence[str]], what: str) -> str:
    for task, of_task in aliases.items():
        if plain(name) in (task, *of_task):
            return task
    raise ValueError(f"{name!r} is no task of {what}: known are {', '.join(aliases)}.")


def plain(name: str) -> str:
    """A folder's name, as names are compared."""
    return name.lower().replace("-", "_")
