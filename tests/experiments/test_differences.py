"""Paired differences: what a pair is, what n is, and the interval, against values computed by hand."""

from __future__ import annotations

import math

import pytest
from cell_files import make_cell

from peft_noah.experiments.differences import differences_over_seeds, differences_over_tasks, pair_differences


def make_cells(values, **more):
    """Cells from test accuracies over seeds by task and method."""
    return [
        make_cell(task, method, seed, test, **more)
        for (task, method), tests in values.items()
        for seed, test in enumerate(tests)
        if test is not None
    ]


CELLS = make_cells(
    {
        ("a", "lora"): (0.50, 0.52),
        ("a", "noah retrained"): (0.52, 0.56),  # 0.02, 0.04: 0.03
        ("b", "lora"): (0.70, 0.70),
        ("b", "noah retrained"): (0.69, 0.71),  # -0.01, 0.01: 0
        ("c", "lora"): (0.60, 0.60, 0.99),
        ("c", "noah retrained"): (0.66, None, 0.99),  # 0.06, 0: 0.03 over seeds 0 and 2
        ("d", "lora"): (0.1,),
    }
)


def numbers(row):
    return [getattr(entry, "value", entry) for entry in row]


def test_only_shared_tasks_and_seeds_are_pairs():
    found = pair_differences(CELLS, "noah retrained", "lora")
    assert list(found) == ["a", "b", "c"]
    assert found["c"] == {0: pytest.approx(0.06), 2: pytest.approx(0)}


def test_over_tasks_n_is_the_number_of_tasks_and_not_of_seeds():
    (row,) = differences_over_tasks(CELLS).rows
    # 0.03, 0, 0.03: mean 0.02, standard deviation 0.03 / sqrt(3), standard error 0.01; t(0.975, 2) = 4.302653.
    assert row[0] == "noah retrained − lora" and row[5] == "2 of 3"
    assert numbers(row)[1:5] == [3, pytest.approx(2), pytest.approx(2 - 4.302653), pytest.approx(2 + 4.302653)]
    assert row[2].error == pytest.approx(1) and not row[2].bold


def test_over_seeds_n_is_the_number_of_shared_seeds_of_the_task():
    table = differences_over_seeds(CELLS)
    assert [row[:2] for row in table.rows] == [("noah retrained − lora", task) for task in "abc"]
    # 0.02, 0.04: mean 0.03, standard error 0.01; t(0.975, 1) = 12.7062.
    assert numbers(table.rows[0])[2:] == [2, pytest.approx(3), pytest.approx(3 - 12.7062), pytest.approx(3 + 12.7062)]
    assert table.rows[0][3].error == pytest.approx(1)


def test_bold_is_an_interval_without_zero():
    cells = make_cells({("a", "lora"): (0.5, 0.5, 0.5), ("a", "vpt"): (0.60, 0.61, 0.62)})
    (row,) = differences_over_seeds(cells, "vpt").rows
    assert row[3].bold and row[4].value > 0
    (row,) = differences_over_seeds(cells).rows
    assert row[0] == "lora − vpt" and row[3].bold and row[5].value < 0


def test_one_pair_has_no_interval():
    (row,) = differences_over_tasks(make_cells({("a", "lora"): (0.5,), ("a", "vpt"): (0.4,)})).rows
    assert numbers(row)[1:] == [1, pytest.approx(10), None, None, "1 of 1"]


def test_a_few_shot_task_is_one_task_whatever_its_shots():
    cells = [
        *make_cells({("a", "lora"): (0.5,), ("a", "vpt"): (0.4,)}, shots=1),
        *make_cells({("a", "lora"): (0.7,), ("a", "vpt"): (0.4,)}, shots=2),
        *make_cells({("a", "lora"): (0.9,)}, shots=4),
        *make_cells({("b", "lora"): (0.5,), ("b", "vpt"): (0.5,)}, shots=1),
    ]
    assert pair_differences(cells, "lora", "vpt") == {"a": {0: pytest.approx(0.2)}, "b": {0: 0}}
    (row,) = differences_over_tasks(cells).rows
    assert row[2].error == pytest.approx(100 * math.sqrt(0.02) / math.sqrt(2)) and row[1].value == 2


def test_every_pair_of_methods_is_compared_in_the_order_of_methods():
    cells = make_cells({("a", method): (0.5,) for method in ("vpt", "mine", "full")})
    assert [row[0] for row in differences_over_tasks(cells).rows] == ["vpt − full", "mine − full", "mine − vpt"]


def test_nothing_shared_gives_no_table():
    cells = make_cells({("a", "lora"): (0.5,), ("b", "vpt"): (0.5,)})
    assert differences_over_tasks(cells) is None is differences_over_seeds(cells)
    assert differences_over_tasks([]) is None is differences_over_seeds([])
