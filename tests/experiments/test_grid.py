"""Means over tasks compare like with like, in the paper's order of tasks, groups and methods."""

from __future__ import annotations

import math

import pytest
from cell_files import make_cell

from peft_noah.experiments.grid import Grid, mean_parameters, order_groups, order_methods, order_tasks


def make_cells(values: dict[tuple[str, str, str], tuple[float, ...]]):
    """Cells from test accuracies over seeds by task, group and method."""
    return [
        make_cell(task, method, seed, test, group=group)
        for (task, group, method), tests in values.items()
        for seed, test in enumerate(tests)
    ]


GRID = Grid.from_cells(
    make_cells(
        {
            ("dmlab", "Structured", "lora"): (0.4, 0.5),
            ("svhn", "Natural", "lora"): (0.8, 0.9),
            ("cifar100", "Natural", "lora"): (0.6, 0.5),
            ("cifar100", "Natural", "vpt"): (0.7, 0.7),
            ("svhn", "Natural", "vpt"): (0.9, 0.9),
        }
    )
)


def test_tasks_groups_and_methods_stand_in_the_papers_order_and_others_by_name():
    assert list(GRID.groups) == ["cifar100", "svhn", "dmlab"] and GRID.methods == ["vpt", "lora"]
    assert order_tasks(["zebra", "vtab/oxford_pet", "ant", "cifar100"]) == [
        "cifar100",
        "vtab/oxford_pet",
        "ant",
        "zebra",
    ]
    assert order_groups(["mine", "structured", "Natural"]) == ["Natural", "structured", "mine"]
    assert order_methods(["x", "noah retrained", "full", "a", "full"]) == ["full", "noah retrained", "a", "x"]


def test_means_are_those_computed_by_hand():
    natural = GRID.group_mean("Natural", "lora")
    # Seed 0: (0.6 + 0.8) / 2, seed 1: (0.5 + 0.9) / 2: the same.
    assert natural.mean == pytest.approx(0.7) and natural.error == pytest.approx(0)
    # Seed 0: (0.7 + 0.4) / 2 = 0.55, seed 1: (0.7 + 0.5) / 2 = 0.6.
    of_groups = GRID.mean_of_groups("lora")
    assert of_groups.mean == pytest.approx(0.575) and of_groups.error == pytest.approx(0.025)
    # Seed 0: 1.8 / 3, seed 1: 1.9 / 3.
    plain = GRID.plain_mean("lora")
    assert plain.mean == pytest.approx(3.7 / 6) and plain.error == pytest.approx(0.1 / 3 / 2)


def test_a_mean_with_a_missing_task_is_missing():
    assert GRID.group_mean("Natural", "vpt").mean == pytest.approx(0.8)
    assert GRID.group_mean("Structured", "vpt") is None
    assert GRID.mean_of_groups("vpt") is None is GRID.plain_mean("vpt")
    assert [name for name, _ in GRID.mean_rows()] == [
        "Natural mean (2)",
        "Structured mean (1)",
        "mean of group means",
        "plain mean (3)",
    ]


def test_tasks_without_a_group_have_the_plain_mean_only():
    mixed = make_cells({("a", "", "lora"): (0.5,), ("b", "Natural", "lora"): (0.7,)})
    assert [name for name, _ in Grid.from_cells(mixed).mean_rows()] == ["plain mean (2)"]
    assert Grid.from_cells(mixed).mean_of_groups("lora") is None


def test_unequal_seeds_have_a_propagated_error():
    cells = [make_cell("a", seed=0, test=0.5, n_test=100), make_cell("b", seed=1, test=0.8, n_test=100)]
    assert Grid.from_cells(cells).plain_mean("lora").error == pytest.approx(math.hypot(0.05, 0.04) / 2)


def test_a_task_in_two_groups_and_two_results_of_one_cell_are_refused():
    with pytest.raises(ValueError, match="task 'a' is in the groups 'x' and 'y'"):
        Grid.from_cells([make_cell("a", seed=0, group="y"), make_cell("a", seed=1, group="x")])
    with pytest.raises(ValueError, match="two cells are of task 'a', method 'lora' and seed 0"):
        Grid.from_cells([make_cell("a", shots=1), make_cell("a", shots=2)])


def test_parameters_are_means_of_tasks_over_means_of_seeds():
    cells = [
        make_cell("a", seed=0, parameters=10),
        make_cell("a", seed=1, parameters=20),
        make_cell("b", parameters=5),
    ]
    assert mean_parameters(cells, ["a", "b"], "lora") == 10
    assert mean_parameters(cells, ["a", "b", "c"], "lora") is None
