"""Accuracies by row and method, and their means over rows: what tables and figures have in common.

A row is a task, or a test set of domain generalisation. A mean is given only where all of its rows are there: two means
always compare like with like.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from peft_noah.experiments.cells import Cell
from peft_noah.experiments.paper import VTAB_GROUPS, published_groups, vtab_name
from peft_noah.results.statistics import Estimate
from peft_noah.run.registry import table_order

MEAN_OF_GROUPS, PLAIN_MEAN = "mean of group means", "plain mean"

Measure = Callable[[Cell], tuple[float, int] | None]


def accuracy(cell: Cell) -> tuple[float, int] | None:
    """Accuracy on the test set and its number of images; None where it has no labelled images."""
    return None if cell.result.test is None else (cell.result.test, cell.result.n_test)


def untested_note(cells: Iterable[Cell]) -> list[str]:
    """The sentence below a table on tasks without labelled test images; nothing where every task has some."""
    tasks = order_tasks(cell.task for cell in cells if cell.result.test is None)
    return [f"No labelled test images, so no test accuracy: {', '.join(tasks)}."] if tasks else []


def standard_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Cells of tasks that are neither few-shot nor tested on further sets, such as VTAB-1k; transfers left out."""
    return [c for c in cells if c.shots is None and not c.result.tests and c.source is None]


def few_shot_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Few-shot cells that are not tested on further sets; transfers left out."""
    return [c for c in cells if c.shots is not None and not c.result.tests and c.source is None]


def domain_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Cells that are tested on further sets; transfers left out."""
    return [cell for cell in cells if cell.result.tests and cell.source is None]


def order_methods(names: Iterable[str]) -> list[str]:
    """Methods in the order of all tables and figures: the known ones, then others by name."""
    return sorted(set(names), key=table_order)


def order_tasks(names: Iterable[str]) -> list[str]:
    """Tasks in the order of the paper's Table 1, then others, such as few-shot tasks, by name."""
    known = list(published_groups())
    return sorted(set(names), key=lambda name: (_place(vtab_name(name), known), name))


def order_groups(names: Iterable[str]) -> list[str]:
    """Groups in the paper's order, whatever their case, then others by name."""
    return sorted(set(names), key=lambda name: (_place(name.capitalize(), VTAB_GROUPS), name))


def _place(name: str | None, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


@dataclass(frozen=True)
class Grid:
    """Estimates of accuracy (shares from 0 to 1) by row and method.

    Attributes:
        groups: the group of every row, in the order of rows; empty where rows have none.
        methods: the methods, in their order.
        estimates: what was measured, by row and method.
    """

    groups: Mapping[str, str]
    methods: Sequence[str]
    estimates: Mapping[tuple[str, str], Estimate]

    @classmethod
    def from_cells(cls, cells: Iterable[Cell], measure: Measure = accuracy) -> Grid:
        """The tasks of some cells, which differ in nothing but task, method and seed.

        Args:
            cells: the cells.
            measure: accuracy (share from 0 to 1) and number of images of a cell; None where it has none.

        Raises:
            ValueError: a task is in two groups, or two cells are of one task, method and seed.
        """
        groups: dict[str, str] = {}
        measured: dict[tuple[str, str], dict[int, tuple[float, int]]] = defaultdict(dict)
        for cell in cells:
            if groups.setdefault(cell.task, cell.group) != cell.group:
                both = " and ".join(sorted(repr(group) for group in (groups[cell.task], cell.group)))
                raise ValueError(f"task {cell.task!r} is in the groups {both}. Give a task one group.")
            if cell.seed in measured[cell.task, cell.method]:
                raise ValueError(
                    f"two cells are of task {cell.task!r}, method {cell.method!r} and seed {cell.seed}; a table holds "
                    "cells of one number of shots."
                )
            if (value := measure(cell)) is not None:
                measured[cell.task, cell.method][cell.seed] = value
        estimates = {key: Estimate.over_seeds(dict(sorted(m.items()))) for key, m in measured.items() if m}
        ordered = {task: groups[task] for group in order_groups(groups.values()) for task in _members(groups, group)}
        return cls(ordered, order_methods(method for _, method in measured), estimates)

    @cached_property
    def group_names(self) -> list[str]:
        """The groups in their order; none where a row has no group."""
        names = order_groups(self.groups.values())
        return [] if "" in names else names

    def members(self, group: str) -> list[str]:
        """The rows of a group, in their order."""
        return [row for row, other in self.groups.items() if other == group]

    def at(self, row: str, method: str) -> Estimate | None:
        """One estimate; None where it is missing."""
        return self.estimates.get((row, method))

    def row(self, name: str) -> dict[str, Estimate | None]:
        """All estimates of a row by method; None where one is missing."""
        return {method: self.at(name, method) for method in self.methods}

    def mean(self, rows: Collection[str], method: str) -> Estimate | None:
        """The mean over some rows; None where one of them is missing."""
        parts = [self.at(row, method) for row in rows]
        return None if not parts or None in parts else Estimate.combine(parts)

    def group_mean(self, group: str, method: str) -> Estimate | None:
        """The mean over the rows of a group; None where one of them is missing."""
        return self.mean(self.members(group), method)

    def mean_of_groups(self, method: str) -> Estimate | None:
        """The mean of all group means, the paper's "Average"; None where a row is missing or has no group."""
        parts = [self.group_mean(group, method) for group in self.group_names]
        return None if not parts or None in parts else Estimate.combine(parts)

    def plain_mean(self, method: str) -> Estimate | None:
        """The mean over all rows; None where one of them is missing."""
        return self.mean(list(self.groups), method)

    def mean_rows(self) -> list[tuple[str, dict[str, Estimate | None]]]:
        """All means by method, with their labels and numbers of rows: per group, then both over all; the plain one alone without groups."""
        rows = []
        for group in self.group_names:
            label = f"{group} mean ({len(self.members(group))})"
            rows.append((label, {method: self.group_mean(group, method) for method in self.methods}))
        if len(rows) > 1:
            rows.append((MEAN_OF_GROUPS, {method: self.mean_of_groups(method) for method in self.methods}))
        label = f"{PLAIN_MEAN} ({len(self.groups)})"
        return [*rows, (label, {method: self.plain_mean(method) for method in self.methods})]


def _members(groups: Mapping[str, str], group: str) -> list[str]:
    return order_tasks(task for task, other in groups.items() if other == group)


def mean_parameters(cells: Iterable[Cell], rows: Collection[str], method: str) -> float | None:
    """Prompt parameters of a method, the mean over tasks of the means over seeds; None where a task is missing."""
    counts: dict[str, list[int]] = defaultdict(list)
    for cell in cells:
        if cell.method == method:
            counts[cell.task].append(cell.result.parameters)
    if counts.keys() != set(rows):
        return None
    return math.fsum(sum(values) / len(values) for values in counts.values()) / len(counts)
