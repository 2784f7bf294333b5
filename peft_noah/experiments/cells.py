"""The cells of a suite: one method on one task with one seed each, and how finished ones are read from their files.

A suite keeps ``<suite>/<task>/seed<k>/results/<method>.json`` per finished cell, and the search beside it in
``<suite>/<task>/seed<k>/search.json``; a JSON-lines file holds the same. Nothing else is needed for tables and figures.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft_noah.architecture import Architecture
from peft_noah.experiments.result_files import CELL, FAILED, ResultFile, Sources, as_list, list_files
from peft_noah.formatting import one_line
from peft_noah.jsonfile import build_named, check_int
from peft_noah.results.report import MAX_NAME, MethodResult, RunReport
from peft_noah.run.names import SEARCH
from peft_noah.run.registry import transfer_source
from peft_noah.searching.result import SearchResult

MAX_SHOTS = 1_000_000


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed: what a suite runs, and what its tables and figures compare.

    Attributes:
        task: the task's name, such as ``"cifar100"``.
        group: the group it belongs to, such as ``"Natural"``; empty where tasks have none.
        shots: training images per class; None where the task is not few-shot.
        method: the method's name.
        seed: of everything random in it.
        result: accuracies, parameters and times; None before it has been run.
        architecture: the architecture found or given; None for a method that has none.
        settings: the settings it ran with, as plain data.
        backbone: the backbone it ran on, as plain data.
    """

    task: str
    group: str
    shots: int | None
    method: str
    seed: int
    result: MethodResult | None = None
    architecture: Architecture | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    backbone: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int | None, str, int]:
        """What no two cells share: task, shots, method and seed."""
        return self.task, self.shots, self.method, self.seed

    @property
    def full_task(self) -> str:
        """The task's name with its shots, which no two tasks of a suite share."""
        return full_name(self.task, self.shots)

    @property
    def run_folder(self) -> str:
        """The run folder that it shares with the other methods of its task and seed, seen from the suite's folder."""
        return f"{self.full_task}/seed{self.seed}"

    @property
    def source(self) -> str | None:
        """What a transfer takes its architecture from, a task or a given architecture; None for any other method."""
        return transfer_source(self.method)

    def __str__(self) -> str:
        return f"{self.full_task}, {self.method}, seed {self.seed}"

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


def full_name(task: str, shots: int | None) -> str:
    """The name of a task with its shots, such as ``"food101-4shot"``."""
    return task if shots is None else f"{task}-{shots}shot"


def load_cells(sources: Sources) -> list[Cell]:
    """All finished cells of a suite or several, in the order of their paths.

    Cells that failed (``<method>.error.json``) are left out; :func:`count_failed` counts them. A cell that two sources
    hold with the same result is taken once.

    Args:
        sources: the folder of a suite or of a single run, a JSON-lines file of results, or a sequence of them.

    Raises:
        ValueError: a source is missing, holds no cells, or more than 50,000 files or 512 MiB; a file cannot be read,
            is cut short, or holds something else; two files hold different results of one task, method and seed.
    """
    found: dict[tuple, tuple[Cell, str]] = {}
    for file in list_files(sources, CELL):
        cell = _load_cell(file)
        earlier, first = found.setdefault(cell.key, (cell, file.where))
        if earlier != cell:
            shots = "" if cell.shots is None else f" at {cell.shots} shots"
            raise ValueError(
                f"{first} and {file.where} hold different results of method {cell.method!r} on task {cell.task!r}{shots} "
                f"with seed {cell.seed}. Keep one of them, or give the runs different seeds."
            )
    if not found:
        named = ", ".join(map(os.fspath, as_list(sources)))
        raise ValueError(
            f"no finished cell in {named}: expected <task>/seed<number>/results/<method>.json. Name the folder of a "
            "suite, or run one first."
        )
    return [cell for cell, _ in found.values()]


def count_failed(sources: Sources) -> int:
    """How many cells ended in an error and have no result yet.

    Raises:
        ValueError: as :func:`load_cells` for a source.
    """
    failed = 0
    for source in as_list(sources):
        finished = {file.path for file in list_files(source, CELL)}
        errors = (file.path.removesuffix(".error.json") + ".json" for file in list_files(source, FAILED))
        failed += sum(path not in finished for path in errors)
    return failed


def load_searches(sources: Sources) -> list[SearchResult]:
    """The searches of one suite or several, in the order of their paths.

    Raises:
        ValueError: a source is missing, or a search cannot be read; the message names the file.
    """
    files = list_files(sources, SEARCH)
    return [build_named(file.read(), SearchResult.from_dict, file.where, "a search result") for file in files]


def _load_cell(file: ResultFile) -> Cell:
    def build(data: object) -> Cell:
        return Cell.from_report(RunReport.from_dict(data))

    try:
        return build_named(file.read(), build, file.where, "a finished cell")
    except ValueError as error:
        raise ValueError(f"{error} Run the suite again with --retry: it runs this cell anew.") from error
