"""Runs a plan cell by cell: resumable, shared by as many processes and machines as can reach its folder.

    <suite>/suite.json                        the plan
    <suite>/<task>/seed<k>/                   a run folder, see peft_noah.run.folder
    <suite>/<task>/seed<k>/results/<method>.json         a finished cell
    <suite>/<task>/seed<k>/results/<method>.error.json   a broken one

A process takes the next cell that is neither finished, broken, nor locked by another, until none is left.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.data.listings import Listings
from peft_noah.experiments.cells import Cell
from peft_noah.experiments.plan import Plan
from peft_noah.experiments.result_files import PLAN
from peft_noah.jsonfile import read_json
from peft_noah.progress import Reporter
from peft_noah.run.context import RunContext
from peft_noah.run.folder import Busy, RunFolder
from peft_noah.run.methods import SEARCH
from peft_noah.run.names import slug
from peft_noah.run.registry import Method, all_methods, method_of_row, transfer
from peft_noah.run.stages import do_stages, run_method
from peft_noah.searching.result import SearchResult
from peft_noah.training.processes import refuse_launcher

DONE, FAILED, RUNNING, OPEN = "done", "failed", "running", "open"
#: the lock of a suite whose cells are being handed to a cluster
SPREAD = "cluster"
_POLL_SECONDS = 5.0


class _NotYet(Exception):
    """A cell needs what another has not finished."""


@dataclass(frozen=True)
class Progress:
    """Where a suite stands.

    Attributes:
        states: per cell, ``"done"``, ``"failed"``, ``"running"`` or ``"open"``.
        seconds_left: estimated from the cells already done, for one process; None while none is done.
        errors: what each failed cell said.
    """

    states: list[tuple[Cell, str]]
    seconds_left: float | None
    errors: list[tuple[Cell, str]]

    def count(self, state: str) -> int:
        """Number of cells in a state."""
        return Counter(found for _, found in self.states)[state]

    def sentence(self) -> str:
        """All of it in one line."""
        parts = [f"{self.count(DONE)} of {len(self.states)} cells done"]
        parts += [f"{self.count(state)} {state}" for state in (RUNNING, FAILED) if self.count(state)]
        if self.seconds_left:
            parts.append(f"about {_duration(self.seconds_left / max(1, self.count(RUNNING)))} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"


class Suite:
    """A plan and the folder that its cells fill.

    Args:
        folder: created if missing.
        plan: what to do; it may add to what the folder holds already. None: read from the folder.
        reporter: shows progress.

    Raises:
        ValueError: if the folder holds no suite where one is expected, another suite, or something else.
    """

    def __init__(
        self, folder: str | os.PathLike[str], plan: Plan | None = None, reporter: Reporter | None = None
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.plan = self._agree(plan)
        self.reporter = reporter or Reporter()
        self._run: tuple[str, RunContext] | None = None

    def _agree(self, plan: Plan | None) -> Plan:
        if plan is None or (self.folder / PLAN).exists():
            known = Plan.load(self.folder)
            return known if plan is None else plan.joined(known)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is not empty and holds no suite. Choose another --output.")
        return plan

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells in the order in which they are taken."""
        return list(self.plan.cells())

    def files(self, cell: Cell) -> RunFolder:
        """The run folder of a cell."""
        return RunFolder(self.folder / cell.run_folder)

    # ------------------------------------------------------------------ running

    def begin(self, *, retry: bool = False) -> None:
        """Make the folder, and write the plan.

        Args:
            retry: forget the errors of broken cells, so that they are tried again.

        Raises:
            ValueError: if a task is not what the plan says, or a launcher started several processes; nothing is written
                then.
        """
        refuse_launcher("a suite")
        self.listings  # noqa: B018 (it checks)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plan.save(self.folder)
        if retry:
            for cell in [cell for cell in self.cells if self._state(cell) == FAILED]:
                self.files(cell).forget(cell.method)

    def run(self, *, retry: bool = False) -> Progress:
        """Take cells until all are finished, broken, or at work elsewhere.

        Args:
            retry: try broken cells again.

        Raises:
            ValueError: as `begin`.
            Busy: if another process hands these cells to a cluster.
        """
        self.begin(retry=retry)
        if RunFolder(self.folder).locked(SPREAD):
            raise Busy(f"another process hands the cells in {self.folder} to a cluster.")
        while True:
            outcomes = Counter(self._take(cell) for cell in self.cells)
            if outcomes["ran"]:
                continue
            if not outcomes["waiting"]:
                return self.progress()
            self.reporter.say("waiting for cells that other processes are at work on ...")
            time.sleep(_POLL_SECONDS)

    def _take(self, cell: Cell) -> str:
        """Run a cell if it is free: ``"ran"``, ``"settled"`` before, ``"busy"`` or ``"waiting"``."""
        files = self.files(cell)
        if self.is_settled(cell):
            return "settled"
        try:
            with files.lock(slug(cell.method)):
                if self.is_settled(cell):  # by another process, in between
                    return "settled"
                self._work(files, cell)
        except _NotYet:
            return "waiting"
        except Busy:
            return "busy"
        return "ran"

    def is_settled(self, cell: Cell) -> bool:
        """Whether a cell has left its result or its error."""
        files = self.files(cell)
        return files.result_path(cell.method).exists() or files.error_path(cell.method).exists()

    def _work(self, files: RunFolder, cell: Cell) -> None:
        try:
            method = self.method(cell)
            self.reporter.say(f"{cell} ...")
            run_method(self._run_of(cell), method)
        except _NotYet:
            raise
        except Busy as busy:  # another process trains what this cell needs
            raise _NotYet(str(busy)) from busy
        except Exception as error:  # whatever breaks one cell must not end the others
            self._run = None
            self.say_failed(cell, error)
        else:
            self.say_done(cell)

    def say_done(self, cell: Cell) -> None:
        """A line about a finished cell, and about what is left."""
        result = self.files(cell).result(cell.method)
        test = "no labelled test images" if result.test is None else f"test {100 * result.test:.1f} %"
        self.reporter.say(f"{cell}: {test}. {self.progress().sentence()}")

    def say_failed(self, cell: Cell, error: Exception) -> None:
        """Keep a cell's error, and a line about it."""
        self.files(cell).add_error(cell.method, error)
        self.reporter.say(f"{cell}: failed, {type(error).__name__}: {error}")

    def _run_of(self, cell: Cell) -> RunContext:
        """The run of a cell; kept for the next one, which is mostly on the same decoded images."""
        if self._run is None or self._run[0] != cell.run_folder:
            self._run = None  # lets go of the images before others are decoded
            run = RunContext(self.folder / cell.run_folder, self.plan.settings(cell), self.reporter)
            self._run = (cell.run_folder, run)
        return self._run[1]

    def method(self, cell: Cell) -> Method:
        """The method of a cell; a transfer has the architecture that was found by now, or given."""
        if cell.source is None:
            return self.plan.method(cell.method)
        return transfer(cell.source, self.plan.architectures.get(cell.source) or self._found(cell))

    def _found(self, cell: Cell) -> Architecture:
        """What the search has found on the task that a transfer comes from; it is done now where no cell of the plan does it."""
        source = self.plan.searched(cell)
        path = self.files(source) / SEARCH.file
        if not path.exists():
            if error := self.search_error(source):
                raise ValueError(f"the search on {cell.source} failed: {error}")
            others = [other for other in self.cells if other.run_folder == source.run_folder]
            if any(method_of_row(other.method).needs is SEARCH and not self.is_settled(other) for other in others):
                raise _NotYet(f"the search on {cell.source} is not finished.")
            self._search(source)
        return SearchResult.load(path).best.architecture

    def _search(self, cell: Cell) -> None:
        try:
            do_stages(self._run_of(cell), SEARCH)
        except Busy:  # another process does it
            raise
        except Exception as error:
            raise ValueError(f"the search on {cell.full_task} failed: {type(error).__name__}: {error}") from error

    def search_error(self, cell: Cell) -> str | None:
        """What a method said that has failed with the search of a cell's run; None: none has, or the search is done."""
        files = self.files(cell)
        if (files / SEARCH.file).exists():
            return None
        errors = (files.error(method.name) for method in all_methods() if method.needs is SEARCH)
        return next((error for error in errors if error), None)

    # ------------------------------------------------------------------ looking

    def progress(self) -> Progress:
        """Where the suite stands, from its files alone."""
        states = [(cell, self._state(cell)) for cell in self.cells]
        failed = [cell for cell, state in states if state == FAILED]
        errors = [(cell, self._error(cell)) for cell in failed]
        return Progress(states, self._seconds_left(states), errors)

    def _state(self, cell: Cell) -> str:
        files = self.files(cell)
        if files.error_path(cell.method).exists():
            return FAILED
        try:
            if files.result(cell.method) is not None:
                return DONE
        except ValueError:  # cut short or damaged, which no process of ours leaves behind
            return FAILED
        return RUNNING if files.locked(slug(cell.method)) else OPEN

    def _error(self, cell: Cell) -> str:
        """What a failed cell said, or what is wrong with its file."""
        try:
            self.files(cell).result(cell.method)
            return self.files(cell).error(cell.method) or ""
        except ValueError as error:
            return str(error)

    @cached_property
    def listings(self) -> Mapping[str, Listings]:
        """Classes and images of every task, by its name; read without decoding an image.

        Raises:
            ValueError: if a task is not what the plan says.
        """
        seed, reading = self.plan.seeds[0], self.plan.run.reading
        return {task.full_name: task.check(seed, **reading) for task in self.plan.tasks}

    def _seconds_left(self, states: list[tuple[Cell, str]]) -> float | None:
        """Cost of the open cells times seconds per cost, those of their method where it has been run."""
        spent, cost, sizes, done = defaultdict(float), defaultdict(float), {}, defaultdict(set)
        for cell, state in states:
            if state == DONE:
                report = read_json(self.files(cell).result_path(cell.method))
                sizes[cell.full_task] = report["task"]["sizes"]
                spent[cell.method] += report["results"][0]["seconds"]
                cost[cell.method] += self.plan.cost(cell, sizes[cell.full_task])
                done[cell.run_folder] |= method_of_row(cell.method).parts
        if not any(cost.values()):
            return None
        rate = sum(spent.values()) / sum(cost.values())
        rates = {method: spent[method] / cost[method] for method in cost if cost[method]}
        typical = next(iter(sizes.values()))
        left = [cell for cell, state in states if state in (OPEN, RUNNING)]
        for cell in left:
            for at, last in ((cell, method_of_row(cell.method).needs), (self.plan.searched(cell), SEARCH)):
                if at is not None and last is not None:
                    folder = self.files(at).path
                    done[at.run_folder] |= {stage.name for stage in last.chain if stage.is_done(folder)}
        costs = self.plan.costs(left, lambda task: sizes.get(task, typical), done)
        return sum(rates.get(cell.method, rate) * cost for cell, cost in zip(left, costs, strict=True))
