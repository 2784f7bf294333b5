"""The paper's Table 1 comes out of the project's own arithmetic as the paper and its rows have it."""

from __future__ import annotations

import pytest

from peft_noah.architecture import Architecture
from peft_noah.experiments.grid import Grid
from peft_noah.experiments.paper import published_groups, published_rows, vtab_name
from peft_noah.results.statistics import Estimate

GRID = Grid(
    published_groups(),
    list(published_rows()),
    {(row, method): Estimate(value, None) for method, rows in published_rows().items() for row, value in rows.items()},
)


@pytest.mark.parametrize(
    ("method", "of_groups", "plain"),
    [
        ("full", 68.49, 65.04),
        ("linear", 57.68, 52.99),
        ("vpt", 71.97, 69.43),
        ("adapter", 73.86, 71.44),
        ("lora", 74.60, 72.25),
        ("noah retrained", 75.48, 73.25),
    ],
)
def test_both_means_are_those_computed_from_the_rows_of_the_paper(method, of_groups, plain):
    assert round(100 * GRID.mean_of_groups(method).mean, 2) == of_groups
    assert round(100 * GRID.plain_mean(method).mean, 2) == plain


def test_noah_has_the_two_averages_that_circulate():
    # 75.5 is the paper's "Average". 73.3 is what later papers print: the rows give 73.247, so 73.25 and then 73.3.
    of_groups, plain = (100 * mean("noah retrained").mean for mean in (GRID.mean_of_groups, GRID.plain_mean))
    assert round(of_groups, 1) == 75.5
    assert plain == pytest.approx(1391.7 / 19) and abs(plain - 73.3) < 0.053


def test_noah_has_the_group_means_of_the_paper():
    means = [round(100 * GRID.group_mean(group, "noah retrained").mean, 1) for group in GRID.group_names]
    assert GRID.group_names == ["Natural", "Specialized", "Structured"]
    assert means == [80.3, 84.9, 61.3]  # the paper prints 80.2: its rows give 80.26


def test_there_are_nineteen_tasks_in_three_groups():
    groups = list(published_groups().values())
    assert [groups.count(name) for name in ("Natural", "Specialized", "Structured")] == [7, 4, 8]
    assert all(list(rows) == list(published_groups()) for rows in published_rows().values())


def test_tasks_and_groups_are_those_of_the_protocols():
    from peft_noah.experiments.protocols import _VTAB

    assert {row[0]: row[1] for row in _VTAB} == published_groups()
    assert [row[0] for row in _VTAB] == list(published_groups())
    assert [vtab_name(f"vtab/{row[-1][0]}") for row in _VTAB] == [row[0] for row in _VTAB]


def test_every_published_architecture_of_vtab_has_its_task():
    names = [name for name in Architecture.published_names() if name.startswith("vtab/")]
    assert sorted(map(vtab_name, names)) == sorted(published_groups())
    assert vtab_name("few_shot/food101_1") is None
