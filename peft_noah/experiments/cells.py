"""The cells of a suite as its tables and figures read them: one method on one task with one seed, from one file.

A suite keeps ``<suite>/<task>/seed<k>/results/<method>.json`` per finished cell, and the search beside it in
``<suite>/<task>/seed<k>/search.json``. Nothing else is needed for tables and figures, on whatever machine.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.formatting import one_line
from peft_noah.jsonfile import check_int
from peft_noah.results.report import MAX_NAME, MethodResult, RunReport
from peft_noah.searching.result import SearchResult

MAX_CELLS = 20_000
MAX_BYTES = 512 * 1024**2  # of all files together; a cell has some kilobytes
MAX_SHOTS = 1_000_000
FAILED = ".error.json"

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Cell:
    """How one method did on one task with one seed.

    Attributes:
        task: the task's name, such as ``"cifar100"``.
        group: the group it belongs to, such as ``"Natural"``; empty where tasks have none.
        shots: training images per class; None where the task is not few-shot.
        method: the method's name.
        seed: of everything random in it.
        result: accuracies, parameters and times.
        architecture: the architecture found or given; None for a method that has none.
        settings: the settings it ran with, as plain data.
        backbone: the backbone it ran on, as plain data.
    """

    task: str
    group: str
    shots: int | None
    method: str
    seed: int
    result: MethodResult
    architecture: Architecture | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    backbone: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int | None, str, int]:
        """What no two cells share: task, shots, method and seed."""
        return self.task, self.shots, self.method, self.seed

    @classmethod
    def from_report(cls, report: RunReport) -> Cell:
        """The cell that a report with one result describes.

        Raises:
            ValueError: it has none or several results, or its task has no name, group or shots.
        """
        if len(report.results) != 1:
            raise ValueError(f"a cell has 1 result; this one has {len(report.results):,}.")
        for name in ("name", "group"):
            value = report.task.get(name)
            if not isinstance(value, str) or len(value) > MAX_NAME or (name == "name" and not one_line(value)):
                raise ValueError(f"the {name} of its task is {reprlib.repr(value)}; it is a short text.")
        shots = report.task.get("shots")
        result = report.results[0]
        return cls(
            task=report.task["name"],
            group=report.task["group"],
            shots=None if shots is None else check_int(shots, "the shots of its task", 1, MAX_SHOTS),
            method=result.method,
            seed=result.seed,
            result=result,
            architecture=None if report.architecture is None else Architecture(report.architecture),
            settings=report.settings,
            backbone=report.backbone,
        )


def load_cells(folders: Folders) -> list[Cell]:
    """All finished cells of one suite folder or several, in the order of their paths.

    Cells that failed (``<method>.error.json``) are left out; :func:`count_failed` counts them. A cell that two folders
    hold with the same result is taken once.

    Args:
        folders: one suite folder, or a sequence of them; the folder of a single run is read too.

    Raises:
        ValueError: a folder is missing, holds no cells, or more than 20,000 files or 512 MiB; a file cannot be read,
            is cut short, or holds something else; two files hold different results of one task, method and seed.
    """
    found: dict[tuple, tuple[Cell, Path]] = {}
    for path in _paths(folders):
        cell = _load_cell(path)
        earlier, first = found.setdefault(cell.key, (cell, path))
        if earlier != cell:
            shots = "" if cell.shots is None else f" at {cell.shots} shots"
            raise ValueError(
                f"{first} and {path} hold different results of method {cell.method!r} on task {cell.task!r}{shots} "
                f"with seed {cell.seed}. Keep one of them, or give the runs different seeds."
            )
    if not found:
        named = ", ".join(os.fspath(folder) for folder in _as_list(folders))
        raise ValueError(
            f"no finished cell in {named}: expected <task>/seed<number>/results/<method>.json. Name the folder of a "
            "suite, or run one first."
        )
    return [cell for cell, _ in found.values()]


def count_failed(folders: Folders) -> int:
    """How many cells of these suite folders ended in an error and have no result yet.

    Raises:
        ValueError: a folder is missing, or holds more than 20,000 files or 512 MiB.
    """
    failed = _listed(folders, f"results/*{FAILED}")
    return sum(not path.with_name(path.name.removesuffix(FAILED) + ".json").exists() for path in failed)


def load_searches(folders: Folders) -> list[SearchResult]:
    """The searches of these suite folders, in the order of their paths.

    Raises:
        ValueError: a folder is missing, or a search cannot be read; the message names the file.
    """
    return [SearchResult.load(path) for path in _listed(folders, "search.json")]


def _load_cell(path: Path) -> Cell:
    try:
        return Cell.from_report(RunReport.load(path))
    except ValueError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(f"{text} Run the suite again with --retry: it runs this cell anew.") from error


def _paths(folders: Folders) -> Iterator[Path]:
    return (path for path in _listed(folders, "results/*.json") if not path.name.endswith(FAILED))


def _listed(folders: Folders, pattern: str) -> list[Path]:
    """The files of a run or of all runs of a suite, sorted, folder by folder, so that neither the file system nor the machine decides the order of anything."""
    paths: list[Path] = []
    for folder in _as_list(folders):
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {os.fspath(folder)}. Name the folder that a suite was run in.")
        both = (path for place in ("", "*/seed*/") for path in Path(folder).glob(f"{place}{pattern}"))
        matching: Iterable[Path] = (path for path in both if not path.name.startswith("."))
        paths += sorted(islice(matching, MAX_CELLS + 1))
        if len(paths) > MAX_CELLS:
            raise ValueError(f"{os.fspath(folder)} holds more than {MAX_CELLS:,} files of results. Read it in parts.")
    if sum(path.stat().st_size for path in paths if path.is_file()) > MAX_BYTES:
        raise ValueError(
            f"the files of {', '.join(map(os.fspath, _as_list(folders)))} have more than {MAX_BYTES:,} bytes together, "
            "which no suite has. Read it in parts."
        )
    return paths


def _as_list(folders: Folders) -> list[str | os.PathLike[str]]:
    return [folders] if isinstance(folders, (str, os.PathLike)) else list(folders)
