"""The paper's tables from the cells of a suite: one column per method, one row per task, so that they fit a page.

All accuracies are top-1 on test images in percent, with their standard error. A value is bold where its lead over the
runner-up of its row is larger than the standard error of that lead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from peft_noah.experiments.cells import Cell
from peft_noah.experiments.grid import (
    Grid,
    accuracy,
    domain_cells,
    few_shot_cells,
    mean_parameters,
    order_methods,
    order_tasks,
    standard_cells,
    untested_note,
)
from peft_noah.experiments.paper import published_parameters, published_rows, vtab_name
from peft_noah.results.statistics import Estimate, clear_winner
from peft_noah.results.table import Entry, Number, Table, bold_note, count_range, one_seed_note
from peft_noah.run.methods import CONTINUED, INHERITED, NOAH, RETRAINED
from peft_noah.run.registry import transfer

_OF_THE_PAPER = " (paper)"


def main_table(cells: Iterable[Cell], paper: bool = False) -> Table | None:
    """Table 1: every method on every task, the mean of each group, both means over all, and prompt parameters.

    Args:
        cells: of a suite; few-shot, domain generalisation and transfer are left out.
        paper: add the paper's own Table 1, as columns marked so; only tasks of VTAB-1k have a value there.

    Returns:
        The table, or None where no cell belongs in it.

    Raises:
        ValueError: ``paper`` is asked for, and no task is of VTAB-1k.
    """
    cells = standard_cells(cells)
    if not cells:
        return None
    grid = Grid.from_cells(cells)
    counts = {method: mean_parameters(cells, grid.groups, method) for method in grid.methods}
    notes = [
        "Prompt parameters: the classifier is not counted; mean over tasks of the means over seeds.",
        *untested_note(cells),
    ]
    others: list[str] = []
    if paper:
        grid, others = _with_paper(grid)
        counts |= {name + _OF_THE_PAPER: count for name, count in published_parameters().items()}
        notes.append(
            "(paper): Table 1 of arXiv 2206.04673, ViT-B/16 of ImageNet-21k, without errors and never in bold. Its "
            "parameters are rounded, and those of linear are the classifier's."
        )
    rows = _grid_rows(grid, others)
    rows.add_numbers("prompt parameters", counts)
    return rows.table("table1", "Table 1: test accuracy (%) by task and method", "task", notes)


def domain_table(cells: Iterable[Cell]) -> Table | None:
    """Table 2, domain generalisation: the test set of the task trained on, then each further one, and their mean."""
    cells = list(cells)
    grids = domain_grids(cells)
    if not grids:
        return None
    rows = _Rows(list(grids.values()))
    for task, grid in grids.items():
        source, *further = grid.groups
        rows.rule()
        rows.add(f"{task} (source)", grid.row(source))
        for name in further:
            rows.add(f"{task} → {name}", grid.row(name))
        rows.add(f"{task}: mean of further sets", {method: grid.mean(further, method) for method in grid.methods})
    title = "Table 2: test accuracy (%) on the source and on further test sets"
    return rows.table("table2", title, "test set", untested_note(domain_cells(cells)))


def domain_grids(cells: Iterable[Cell]) -> dict[str, Grid]:
    """Per task trained on, one row for its own test set, named "", and one for each further test set."""
    cells = [replace(cell, task=task_label(cell)) for cell in domain_cells(cells)]
    grids = {}
    methods = order_methods(cell.method for cell in cells)
    for task in order_tasks(cell.task for cell in cells):
        chosen = [cell for cell in cells if cell.task == task]
        names = list(dict.fromkeys(name for cell in chosen for name in cell.result.tests))
        measures = {"": accuracy} | {name: partial(_further, name=name) for name in names}
        estimates = {
            (name, method): estimate
            for name, measure in measures.items()
            for (_, method), estimate in Grid.from_cells(chosen, measure).estimates.items()
        }
        grids[task] = Grid(dict.fromkeys(measures, ""), methods, estimates)
    return grids


def _further(cell: Cell, name: str) -> tuple[float, int] | None:
    return cell.result.tests.get(name)


def retraining_table(cells: Iterable[Cell]) -> Table | None:
    """Table 3: NOAH's subnet with inherited and with retrained weights, and where there is one trained on from the
    inherited ones, per group and over all tasks."""
    cells = [cell for cell in standard_cells(cells) if cell.method in NOAH]
    if not cells:
        return None
    inherited, retrained, continued = INHERITED.name, RETRAINED.name, CONTINUED.name
    further = [continued] if any(cell.method == continued for cell in cells) else []
    grid = replace(Grid.from_cells(cells), methods=[inherited, retrained, *further])
    rows = _Rows([grid])
    for label, means in grid.mean_rows():
        before, after = means[inherited], means[retrained]
        rows.add(label, means, [None if None in (before, after) else difference_number(*after.minus(before))])
    notes = [
        "The error of a difference is that of its seed-by-seed values where both have several in common.",
        *untested_note(cells),
    ]
    title = "Table 3: test accuracy (%) with inherited and with retrained weights"
    return rows.table("table3", title, "mean over", notes, ["retrained − inherited"])


def few_shot_table(cells: Iterable[Cell]) -> Table | None:
    """The numbers of Fig. 4: every method on every few-shot task, and the mean over tasks, by shots."""
    cells = list(cells)
    grids = few_shot_grids(cells)
    if not grids:
        return None
    rows = _Rows(list(grids.values()))
    for shots, grid in grids.items():
        rows.rule()
        for task in grid.groups:
            rows.add(f"{task}, {count_shots(shots)}", grid.row(task))
        rows.add(f"mean, {count_shots(shots)}", {method: grid.plain_mean(method) for method in grid.methods})
    title = "Few-shot: test accuracy (%) by task, shots and method"
    return rows.table("few_shot", title, "task", untested_note(few_shot_cells(cells)))


def few_shot_grids(cells: Iterable[Cell]) -> dict[int, Grid]:
    """One grid per number of shots, all with the same tasks and methods; what was not run is missing in it."""
    cells = [replace(cell, group="") for cell in few_shot_cells(cells)]
    tasks = dict.fromkeys(sorted({cell.task for cell in cells}), "")
    methods = order_methods(cell.method for cell in cells)
    return {
        shots: replace(Grid.from_cells(c for c in cells if c.shots == shots), groups=tasks, methods=methods)
        for shots in sorted({cell.shots for cell in cells})
    }


def transfer_table(cells: Iterable[Cell]) -> Table | None:
    """The numbers of Fig. 6: an architecture found on one task and retrained on another, against the other's own.

    One row per source, one column per task: test accuracy minus that of NOAH retrained on the task with the task's own
    search, in points, seed by seed where both have several in common.
    """
    cells = list(cells)
    sources, tasks, differences = transfers(cells)
    if not sources:
        return None
    cells = [replace(cell, task=task_label(cell), group="") for cell in cells if cell.method == RETRAINED.name]
    own = Grid.from_cells(cells)
    first = [own.at(task, RETRAINED.name) for task in tasks]
    rows: list[tuple[Entry, ...]] = [
        ("own search (accuracy)", *(None if e is None else Number.percent(e) for e in first))
    ]
    for source in sources:
        pairs = [differences.get((source, task)) for task in tasks]
        rows.append((source, *(None if pair is None else difference_number(*pair) for pair in pairs)))
    notes = (
        "Below the first row: test accuracy of the architecture found on the row's task and retrained on the "
        "column's, minus that of the column's own search, in points ± standard error: of the seed-by-seed differences "
        "where both have several seeds in common, else both errors combined, sqrt(a^2 + b^2).",
        "–: not run, or the task's own search is not, or the task has no test accuracy.",
        *untested_note(cells),
    )
    title = "Transfer: difference (points) to the task's own search, by source (rows) and task"
    return Table("transfer", title, ("source", *tasks), tuple(rows), notes, (1,))


def transfers(
    cells: Iterable[Cell],
) -> tuple[list[str], list[str], dict[tuple[str, str], tuple[float, float | None]]]:
    """Sources, tasks, and by both the difference (share) to the task's own search with its standard error."""
    cells = [replace(cell, task=task_label(cell), group="") for cell in cells]
    tried = [cell for cell in cells if cell.source is not None]
    grid = Grid.from_cells([*(cell for cell in cells if cell.method == RETRAINED.name), *tried])
    tasks = order_tasks(cell.task for cell in tried)
    sources = order_tasks(cell.source for cell in tried)
    differences = {}
    for source in sources:
        for task in tasks:
            here, own = grid.at(task, transfer(source).name), grid.at(task, RETRAINED.name)
            if here is not None and own is not None:
                differences[source, task] = here.minus(own)
    return sources, tasks, differences


def task_label(cell: Cell) -> str:
    """The task of a cell, with its shots where it has them."""
    return cell.task if cell.shots is None else f"{cell.task}, {count_shots(cell.shots)}"


def count_shots(shots: int) -> str:
    """A number of shots in words."""
    return "1 shot" if shots == 1 else f"{shots} shots"


def difference_number(difference: float, error: float | None) -> Number:
    """A difference of two shares, in points, as a table shows it."""
    return Number(100 * difference, None if error is None else 100 * error, signed=True)


def _with_paper(grid: Grid) -> tuple[Grid, list[str]]:
    """The grid with the paper's columns behind its own, and the names of these."""
    estimates = dict(grid.estimates)
    for method, values in published_rows().items():
        for row in grid.groups:
            if (name := vtab_name(row)) is not None:
                estimates[row, method + _OF_THE_PAPER] = Estimate(values[name], None)
    if len(estimates) == len(grid.estimates):
        raise ValueError(
            f"the paper has no results for {', '.join(map(repr, grid.groups))}: its Table 1 is about the 19 tasks of "
            "VTAB-1k. Leave the paper's columns out."
        )
    others = [method + _OF_THE_PAPER for method in published_rows()]
    return replace(grid, methods=[*grid.methods, *others], estimates=estimates), others


def _grid_rows(grid: Grid, unranked: Sequence[str]) -> _Rows:
    """Tasks group by group, then the means."""
    rows = _Rows([grid], unranked)
    for group in dict.fromkeys(grid.groups.values()):
        rows.rule()
        for task in grid.members(group):
            rows.add(task, grid.row(task))
    rows.rule()
    for label, means in grid.mean_rows():
        rows.add(label, means)
    rows.rule()
    return rows


class _Rows:
    """Rows of estimates, one column per method, and the notes that they need."""

    def __init__(self, grids: Sequence[Grid], unranked: Sequence[str] = ()) -> None:
        self.methods = list(grids[0].methods)
        self.unranked = unranked
        measured = [e for grid in grids for (_, method), e in grid.estimates.items() if method not in unranked]
        self.seeds = sorted({len(estimate.by_seed) for estimate in measured})
        self.mixed = self.seeds[:1] == [1] and len(self.seeds) > 1
        self.rows: list[tuple[Entry, ...]] = []
        self.rules: list[int] = []

    def rule(self) -> None:
        """A line above the next row."""
        self.rules.append(len(self.rows))

    def add(self, label: str, estimates: Mapping[str, Estimate | None], more: Sequence[Entry] = ()) -> None:
        """A row of estimates by method, in percent, with the clear winner in bold."""
        ranked = {name: e for name, e in estimates.items() if e is not None and name not in self.unranked}
        winner = clear_winner(ranked)
        cells = [None if (e := estimates[name]) is None else self._number(e, name == winner) for name in self.methods]
        self.rows.append((label, *cells, *more))

    def add_numbers(self, label: str, counts: Mapping[str, float | None]) -> None:
        """A row of counts by method."""
        cells = [None if counts[name] is None else Number(counts[name], decimals=0) for name in self.methods]
        self.rows.append((label, *cells))

    def table(self, name: str, title: str, first: str, notes: Sequence[str] = (), more: Sequence[str] = ()) -> Table:
        """All rows as a table; ``more`` names the columns behind the methods."""
        header = (first, *self.methods, *more)
        return Table(name, title, header, tuple(self.rows), (*self._notes(), *notes), tuple(self.rules))

    def _number(self, estimate: Estimate, bold: bool) -> Number:
        return Number.percent(estimate, bold, " †" if self.mixed and estimate.single else "")

    def _notes(self) -> list[str]:
        notes = []
        if several := [count for count in self.seeds if count > 1]:
            notes.append(f"Mean over {count_range(several)} seeds ± its standard error.")
        if 1 in self.seeds:
            notes.append(one_seed_note("†" if self.mixed else "±", "the test images"))
        if self.seeds[-1:] > [0]:
            notes.append(
                "Error of a mean over rows: over seeds, of the mean that each seed gives, where all its rows have the "
                "same several seeds; else the rows' errors propagated, sqrt(sum e^2) / k."
            )
        if any(None in row for row in self.rows):
            notes.append(
                "–: not there. A mean is given only where all of its rows are there: means always compare like with "
                "like."
            )
        if any(isinstance(entry, Number) and entry.bold for row in self.rows for entry in row):
            notes.append(bold_note("the best of its row"))
        return notes
