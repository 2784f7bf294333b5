"""The tasks of a folder, whichever protocol they are of."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft_noah.experiments.protocols import (
    DOMAIN_NAMES,
    FEW_SHOT_NAMES,
    SHOTS,
    VTAB_NAMES,
    domain_tasks,
    few_shot_tasks,
    vtab_tasks,
)
from peft_noah.experiments.task_folders import folders_by_task, lists_shots, plain, task_sources
from peft_noah.experiments.tasks import Task
from peft_noah.jsonfile import read_json

logger = logging.getLogger(__name__)

#: groups of a folder of tasks, in the folder itself
GROUPS_FILE = "tasks.json"


def detect_tasks(
    root: str | os.PathLike[str], groups: Mapping[str, str] | None = None, shots: Iterable[int] = SHOTS
) -> tuple[Task, ...]:
    """The tasks of a folder, by what its folders are called: VTAB-1k, few-shot, domain generalisation, or a user's own.

    Where some of a benchmark's tasks are missing, a warning names them, and the others are taken.

    Args:
        root: folder of the tasks; or the Hub id of a dataset with one config per task.
        groups: as for `task_folder`; where given, the tasks are the user's own, whatever they are called.
        shots: as for `few_shot_tasks`.

    Raises:
        ValueError: there is no task in the folder.
    """
    sources = task_sources(root)
    names = set(map(plain, sources))
    if groups is None and not (Path(root).expanduser() / GROUPS_FILE).exists():
        as_few_shot, as_vtab = names <= _all(FEW_SHOT_NAMES), names <= _all(VTAB_NAMES)
        if as_few_shot and (not as_vtab or any(map(lists_shots, sources.values()))):
            return few_shot_tasks(root, shots, _present(FEW_SHOT_NAMES, names, root, "the few-shot datasets"))
        if as_vtab:
            return vtab_tasks(root, _present(VTAB_NAMES, names, root, "VTAB-1k's tasks"))
        if "imagenet" in names and names <= _all(DOMAIN_NAMES):
            there = _present(DOMAIN_NAMES, names, root, "the sets of domain generalisation")
            tests = folders_by_task(root, DOMAIN_NAMES, there, "domain generalisation")
            return domain_tasks(root, {name: tests[name] for name in there if name != "imagenet"})
    return task_folder(root, groups)


def task_folder(root: str | os.PathLike[str], groups: Mapping[str, str] | None = None) -> tuple[Task, ...]:
    """Any folder of tasks, one folder each, of whatever classes and sizes.

    Args:
        root: folder of the tasks; or the Hub id of a dataset with one config per task.
        groups: the group of each task, in which order tasks come; None: from `tasks.json` in the folder, an object of
            group by task; where that is missing too, tasks have no group and come by name.

    Raises:
        ValueError: there is no task, a grouped one has no folder, or one has no group while others have.
    """
    folders = task_sources(root)
    if groups is None and (Path(root).expanduser() / GROUPS_FILE).is_file():
        groups = read_groups(Path(root).expanduser() / GROUPS_FILE)
    groups = dict.fromkeys(folders, "") if groups is None else groups
    for missing in [name for name in groups if name not in folders]:
        raise ValueError(f"{root} has no task {missing!r}, which has a group; it has {', '.join(folders)}.")
    for missing in [name for name in folders if name not in groups]:
        raise ValueError(f"task {missing!r} of {root} has no group. Add it to the groups, or leave all out.")
    return tuple(Task(name, folders[name], group) for name, group in groups.items())


def read_groups(path: str | os.PathLike[str]) -> dict[str, str]:
    """The groups of tasks from a JSON file, an object of group by task.

    Raises:
        ValueError: the file cannot be read or is something else.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(group, str) for group in data.values()):
        raise ValueError(f'{path} holds no groups: expected an object like {{"task": "group", ...}}.')
    return data


def _all(aliases: Mapping[str, Sequence[str]]) -> set[str]:
    return {alias for of_task in aliases.values() for alias in of_task}


def _present(aliases: Mapping[str, Sequence[str]], names: set[str], root: object, what: str) -> list[str]:
    there = [name for name, of_task in aliases.items() if names & set(of_task)]
    if missing := [name for name in aliases if name not in there]:
        logger.warning("%s: %d of %s are not there: %s", root, len(missing), what, ", ".join(missing))
    return there
