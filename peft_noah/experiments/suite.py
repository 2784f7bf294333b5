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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.data.listings import Listings
from peft_noah.experiments.plan import Job, Plan
from peft_noah.experiments.result_files import PLAN
from peft_noah.jsonfile import read_json
from peft_noah.progress import Reporter
from peft_noah.run.folder import SEARCH, Busy, RunFolder, slug
from peft_noah.run.method_names import INHERITED, NOAH
from peft_noah.run.stages import Run
from peft_noah.searching.result import SearchResult
from peft_noah.training.processes import refuse_launcher

DONE, FAILED, RUNNING, OPEN = "done", "failed", "running", "open"
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

    states: list[tuple[Job, str]]
    seconds_left: float | None
    errors: list[tuple[Job, str]]

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
        self._run: tuple[str, Run] | None = None

    def _agree(self, plan: Plan | None) -> Plan:
        if plan is None or (self.folder / PLAN).exists():
            known = Plan.load(self.folder)
            return known if plan is None else plan.joined(known)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is not empty and holds no suite. Choose another --output.")
        return plan

    @cached_property
    def jobs(self) -> list[Job]:
        """All cells in the order in which they are taken."""
        return list(self.plan.jobs())

    def files(self, job: Job) -> RunFolder:
        """The run folder of a cell."""
        return RunFolder(self.folder / job.folder)

    # ------------------------------------------------------------------ running

    def run(self, *, retry: bool = False, on_cell: Callable[[Job], None] | None = None) -> Progress:
        """Take cells until all are finished, broken, or at work elsewhere.

        Args:
            retry: try broken cells again.
            on_cell: called after each cell of this process.

        Raises:
            ValueError: if a task is not what the plan says, or a launcher started several processes; nothing is written
                then.
        """
        refuse_launcher("a suite")
        self.listings  # noqa: B018 (it checks)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.plan.save(self.folder)
        if retry:
            for job in [job for job in self.jobs if self._state(job) == FAILED]:
                self.files(job).forget(job.method)
        while True:
            outcomes = Counter(self._take(job, on_cell) for job in self.jobs)
            if outcomes["ran"]:
                continue
            if not outcomes["waiting"]:
                return self.progress()
            self.reporter.say("waiting for cells that other processes are at work on ...")
            time.sleep(_POLL_SECONDS)

    def _take(self, job: Job, on_cell: Callable[[Job], None] | None) -> str:
        """Run a cell if it is free: ``"ran"``, ``"settled"`` before, ``"busy"`` or ``"waiting"``."""
        files = self.files(job)
        if self._settled(files, job):
            return "settled"
        try:
            with files.lock(slug(job.method)):
                if self._settled(files, job):  # by another process, in between
                    return "settled"
                self._work(files, job)
        except _NotYet:
            return "waiting"
        except Busy:
            return "busy"
        if on_cell is not None:
            on_cell(job)
        return "ran"

    @staticmethod
    def _settled(files: RunFolder, job: Job) -> bool:
        return files.result_path(job.method).exists() or files.error_path(job.method).exists()

    def _work(self, files: RunFolder, job: Job) -> None:
        try:
            architecture = self._architecture(job)
            self.reporter.say(f"{job} ...")
            self._run_of(job).method(job.method, architecture)
        except _NotYet:
            raise
        except Busy as busy:  # another process trains what this cell needs
            raise _NotYet(str(busy)) from busy
        except Exception as error:  # whatever breaks one cell must not end the others
            self._run = None
            files.add_error(job.method, error)
            self.reporter.say(f"{job}: failed, {type(error).__name__}: {error}")
        else:
            result = files.result(job.method)
            test = "no labelled test images" if result.test is None else f"test {100 * result.test:.1f} %"
            self.reporter.say(f"{job}: {test}. {self.progress().sentence()}")

    def _run_of(self, job: Job) -> Run:
        """The run of a cell; kept for the next one, which is mostly on the same decoded images."""
        if self._run is None or self._run[0] != job.folder:
            self._run = None  # lets go of the images before others are decoded
            self._run = (job.folder, Run(self.folder / job.folder, self.plan.settings(job), self.reporter))
        return self._run[1]

    def _architecture(self, job: Job) -> Architecture | None:
        if job.source is None:
            return None
        if job.source in self.plan.architectures:
            return self.plan.architectures[job.source]
        task = next(task for task in self.plan.tasks if task.folder == job.source)
        source = self.files(Job(task, INHERITED, job.seed))
        if (source / SEARCH).exists():
            return SearchResult.load(source / SEARCH).best.architecture
        if error := source.error(INHERITED):
            raise ValueError(f"the search on {job.source} failed: {error}")
        raise _NotYet(f"the search on {job.source} is not finished.")

    # ------------------------------------------------------------------ looking

    def progress(self) -> Progress:
        """Where the suite stands, from its files alone."""
        states = [(job, self._state(job)) for job in self.jobs]
        failed = [job for job, state in states if state == FAILED]
        errors = [(job, self._error(job)) for job in failed]
        return Progress(states, self._seconds_left(states), errors)

    def _state(self, job: Job) -> str:
        files = self.files(job)
        if files.error_path(job.method).exists():
            return FAILED
        try:
            if files.result(job.method) is not None:
                return DONE
        except ValueError:  # cut short or damaged, which no process of ours leaves behind
            return FAILED
        return RUNNING if files.locked(slug(job.method)) else OPEN

    def _error(self, job: Job) -> str:
        """What a failed cell said, or what is wrong with its file."""
        try:
            self.files(job).result(job.method)
            return self.files(job).error(job.method) or ""
        except ValueError as error:
            return str(error)

    @cached_property
    def listings(self) -> Mapping[str, Listings]:
        """Classes and images of every task, by its name; read without decoding an image.

        Raises:
            ValueError: if a task is not what the plan says.
        """
        return {task.folder: task.check(self.plan.seeds[0]) for task in self.plan.tasks}

    def _seconds_left(self, states: list[tuple[Job, str]]) -> float | None:
        spent, cost, sizes = defaultdict(float), defaultdict(float), {}
        for job, state in states:
            if state == DONE:
                report = read_json(self.files(job).result_path(job.method))
                sizes[job.task.folder] = report["task"]["sizes"]
                for method in (job.method, ""):  # the latter stands for all methods
                    spent[method] += report["results"][0]["seconds"]
                    cost[method] += self.plan.cost(job, sizes[job.task.folder])
        if not cost[""]:
            return None
        typical = next(iter(sizes.values()))
        seconds, shared = 0.0, set()
        for job, state in states:
            if state in (OPEN, RUNNING):
                first = job.folder not in shared and not (self.files(job) / SEARCH).exists()
                shared |= {job.folder} if first and job.method in NOAH else set()
                rate = spent[job.method] / cost[job.method] if cost[job.method] else spent[""] / cost[""]
                seconds += rate * self.plan.cost(job, sizes.get(job.task.folder, typical), shared=first)
        return seconds
