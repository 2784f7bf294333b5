"""Runs the cells of a suite on a cluster: each as a piece of its own, as soon as the stages that it needs are done.

The process that hands them out is the only one that writes into the suite's folder. Killed and started again, it goes on with
the cells that have left no file.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial

from peft_noah.experiments.cells import Cell
from peft_noah.experiments.suite import RUNNING, SPREAD, Progress, Suite
from peft_noah.run.cluster import Cluster
from peft_noah.run.folder import Busy, RunFolder
from peft_noah.run.methods import SEARCH
from peft_noah.run.names import slug
from peft_noah.run.pieces import Piece, run_pieces
from peft_noah.run.publishing import publish
from peft_noah.run.registry import Method, Stage, method_of_row


def run_spread(suite: Suite, cluster: Cluster, *, retry: bool = False) -> Progress:
    """Run all cells of a suite that are neither finished nor broken; as `Suite.run`, on a cluster. A cell is the same.

    Args:
        suite: the suite.
        cluster: where.
        retry: try broken cells again.

    Raises:
        ValueError: as `Suite.begin`, or the cluster cannot run a cell; nothing is written then.
        Busy: another process runs cells of this suite.
    """
    with cluster.connected() as pool:
        suite.begin(retry=retry)
        with RunFolder(suite.folder).lock(SPREAD):
            if running := suite.progress().count(RUNNING):
                raise Busy(
                    f"other processes run {running} cells in {suite.folder}. Wait for them, or stop them first."
                )
            spread = _Spread(suite)
            with spread.locks:
                run_pieces(pool, spread.pieces, spread.on_start, spread.on_end)
    return suite.progress()


class _Spread:
    """The pieces of a suite, and what is to be done as each begins and ends."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.pieces: dict[str, Piece] = {}
        self.locks = ExitStack()  # of the cells that nodes are at work on, for whoever looks
        self._cells: dict[str, Cell] = {}  # of each piece; of a stage, the first that needs it
        self._held: dict[str, ExitStack] = {}
        self._errors: dict[str, Exception] = {}
        self._open: Counter[str] = Counter()  # cells by run folder that have not ended
        self._planned = {cell.key for cell in suite.cells}
        for cell in suite.cells:
            if not suite.is_settled(cell):
                self._add_cell(cell)

    # ------------------------------------------------------------------ pieces

    def _add_cell(self, cell: Cell) -> list[str]:
        """The piece of a cell, unless its result is there; and its key."""
        if self.suite.files(cell).result_path(cell.method).exists():
            return []
        key = str(cell)
        if key not in self.pieces:
            needs = tuple(self._needs(cell))
            self._add(key, cell, None, needs)
            self._open[cell.run_folder] += 1
        return [key]

    def _needs(self, cell: Cell) -> list[str]:
        method = method_of_row(cell.method)
        if method.needs is not None:
            return self._add_stage(cell, method.needs)
        if (source := self.suite.plan.searched(cell)) is not None:
            return [] if self.suite.search_error(source) else self._add_stage(source, SEARCH)
        task = self.suite.plan.task(cell.full_task)
        return [key for name in method.best_of for key in self._add_cell(task.cell(name, cell.seed))]

    def _add_stage(self, cell: Cell, stage: Stage) -> list[str]:
        """The pieces of a stage and those before it, unless they are done; and the key of the last."""
        if stage.is_done(self.suite.files(cell).path):
            return []
        key = f"{cell.run_folder}, {stage.name} stage"
        if key not in self.pieces:
            needs = () if stage.after is None else tuple(self._add_stage(cell, stage.after))
            self._add(key, cell, stage, needs)
        return [key]

    def _add(self, key: str, cell: Cell, stage: Stage | None, needs: tuple[str, ...]) -> None:
        self._cells[key] = cell
        work = partial(self._work, cell, stage, needs)
        self.pieces[key] = Piece(self.suite.files(cell), self.suite.plan.settings(cell), work, needs)

    def _work(self, cell: Cell, stage: Stage | None, needs: tuple[str, ...]) -> Stage | Method:
        """The stage, or the method of the cell; raises the error of what it needs."""
        error = next((self._errors[key] for key in needs if key in self._errors), None)
        if error is None:
            return self.suite.method(cell) if stage is None else stage
        if stage is None and cell.source is not None:
            raise ValueError(f"the search on {cell.source} failed: {type(error).__name__}: {error}") from error
        raise error

    # ------------------------------------------------------------------ events

    def on_start(self, key: str) -> None:
        cell = self._cells[key]
        self.suite.reporter.say(f"{key} ...")
        self._held[key] = self.locks.enter_context(ExitStack())
        try:
            self._held[key].enter_context(self.suite.files(cell).lock(slug(cell.method)))
        except Busy:  # another stage is shown as this cell
            pass

    def on_end(self, key: str, error: Exception | None) -> None:
        if key in self._held:
            self._held.pop(key).close()
        if error is not None:
            self._errors[key] = error
        cell = self._cells[key]
        if key != str(cell):  # a stage: the cells that need it say what it did
            return
        self._open[cell.run_folder] -= 1
        if error is None:
            self.suite.say_done(cell)
        elif cell.key in self._planned:
            self.suite.say_failed(cell, error)
        # figures and cards of the whole run once all of it is there
        publish(self.suite.files(cell).path, missing_only=self._open[cell.run_folder] > 0)
