"""Paired differences between methods with confidence intervals: over the seeds of each task, and over tasks.

The seeds of a task are repeats of one experiment. How a difference varies from task to task says what to expect of a task
that nobody has tried. The interval over all tasks therefore has one value per task, the mean over its seeds. Its n is the
number of tasks: three seeds on six tasks are 6 values, not 18.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

from peft_noah.experiments.cells import Cell
from peft_noah.experiments.grid import order_methods, order_tasks, untested_note
from peft_noah.results.statistics import Difference, paired_difference
from peft_noah.results.table import Entry, Number, Table
from peft_noah.run.methods import RETRAINED

_INTERVAL = ("n", "difference", "95 % low", "95 % high")
_STUDENT = (
    "Interval: the difference ± t times its standard error, t the 97.5 % quantile of Student's t with n - 1 degrees of "
    "freedom. It is not corrected for the number of comparisons. Bold: the interval excludes 0."
)


def pair_differences(cells: Iterable[Cell], method: str, other: str) -> dict[str, dict[int, float]]:
    """Test accuracy of ``method`` minus that of ``other`` (shares), by task and seed.

    Only what both have done is paired: the same task, shots and seed. A few-shot task has one value per seed, the mean
    over the shots that both have.
    """
    tests: dict[tuple[str, int, int | None], dict[str, float]] = defaultdict(dict)
    for cell in cells:
        if cell.method in (method, other) and cell.result.test is not None:
            tests[cell.task, cell.seed, cell.shots][cell.method] = cell.result.test
    differences: dict[str, dict[int, list[float]]] = {}
    for (task, seed, _), by_method in tests.items():
        if len(by_method) == 2:
            by_seed = differences.setdefault(task, {})
            by_seed.setdefault(seed, []).append(by_method[method] - by_method[other])
    few_shot = any(shots is not None for _, _, shots in tests)
    tasks = sorted(differences) if few_shot else order_tasks(differences)
    return {
        task: {seed: statistics.fmean(values) for seed, values in sorted(differences[task].items())} for task in tasks
    }


def differences_over_tasks(cells: Iterable[Cell], name: str = "differences", what: str = "tasks") -> Table | None:
    """Every pair of methods over the tasks that both have: one value per task, the mean over its shared seeds.

    Args:
        cells: of one protocol, such as all few-shot cells.
        name: of the table's files.
        what: the tasks in words, for the title.

    Returns:
        The table, or None where no two methods share a task.
    """
    cells = list(cells)
    rows = []
    for other, method in combinations(order_methods(cell.method for cell in cells), 2):
        by_task = pair_differences(cells, method, other)
        if by_task:
            means = [statistics.fmean(seeds.values()) for seeds in by_task.values()]
            better = sum(mean > 0 for mean in means)
            rows.append((f"{method} − {other}", *_entries(paired_difference(means)), f"{better} of {len(means)}"))
    notes = (
        "In points of test accuracy. A pair is one task that both methods have: the mean difference over the seeds "
        "(and shots) they share. n is the number of such tasks: the interval says what to expect of another task of "
        "the same kind, and seeds are not counted as tasks.",
        _STUDENT,
        *untested_note(cells),
    )
    header = ("methods", *_INTERVAL, "tasks won")
    title = f"Paired differences over {what}"
    return Table(name, title, header, tuple(rows), notes) if rows else None


def differences_over_seeds(
    cells: Iterable[Cell], reference: str | None = None, name: str = "differences_by_task", what: str = "tasks"
) -> Table | None:
    """One method minus each other method on every task, over the seeds that both have there.

    Args:
        cells: of one protocol.
        reference: the method; None takes NOAH retrained, or else the last of the methods.
        name: of the table's files.
        what: the tasks in words, for the title.

    Returns:
        The table, or None where it shares no task with another method.
    """
    cells = list(cells)
    methods = order_methods(cell.method for cell in cells)
    if not methods:
        return None
    reference = reference or (RETRAINED.name if RETRAINED.name in methods else methods[-1])
    rows: list[tuple[Entry, ...]] = []
    rules = []
    for other in methods:
        if other == reference:
            continue
        rules.append(len(rows))
        by_task = pair_differences(cells, reference, other)
        for task, seeds in by_task.items():
            rows.append((f"{reference} − {other}", task, *_entries(paired_difference(list(seeds.values())))))
    notes = (
        "In points of test accuracy. A pair is one seed that both methods have on the task; n is the number of such "
        "seeds: the interval says what to expect of another seed on this very task.",
        _STUDENT,
        *untested_note(cells),
    )
    title = f"Paired differences over seeds within {what}"
    header = ("methods", "task", *_INTERVAL)
    return Table(name, title, header, tuple(rows), notes, tuple(rules)) if rows else None


def _entries(difference: Difference) -> list[Entry]:
    """What stands under ``_INTERVAL``: shares become points."""
    error, low, high = (
        None if value is None else 100 * value for value in (difference.error, difference.low, difference.high)
    )
    excludes_zero = low is not None and (low > 0 or high < 0)
    number = Number(100 * difference.mean, error, excludes_zero, signed=True)
    return [
        Number(difference.n, decimals=0),
        number,
        *(v if v is None else Number(v, signed=True) for v in (low, high)),
    ]
