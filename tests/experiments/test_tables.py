"""The paper's tables equal hand-computed ones."""

from __future__ import annotations

import pytest
from cell_files import make_cell, write_cell

from peft_noah.experiments.differences import differences_over_tasks
from peft_noah.experiments.output import write_tables
from peft_noah.experiments.paper import published_groups, published_rows
from peft_noah.experiments.tables import (
    domain_table,
    few_shot_table,
    main_table,
    retraining_table,
    transfer_table,
)
from peft_noah.results.table import Number


def shown(table) -> dict[str, list[str]]:
    """The cells of a table as they are shown, with ** around what is bold, by the first of their row."""
    return {row[0]: [show(entry) for entry in row[1:]] for row in table.rows}


def show(entry) -> str:
    bold = isinstance(entry, Number) and entry.bold
    return "–" if entry is None else f"**{entry}**" if bold else str(entry)


def over_seeds(task, method, *tests, **more):
    return [make_cell(task, method, seed, test, **more) for seed, test in enumerate(tests)]


CELLS = [
    *over_seeds("cifar100", "lora", 0.60, 0.62, 0.64, group="Natural"),
    *over_seeds("cifar100", "noah retrained", 0.63, 0.66, 0.69, group="Natural", parameters=3_000),
    *over_seeds("cifar100", "noah inherited", 0.60, 0.61, 0.62, group="Natural", parameters=3_000),
    *over_seeds("dmlab", "lora", 0.50, 0.50, 0.50, group="Structured"),
    *over_seeds("dmlab", "noah retrained", 0.40, 0.60, 0.53, group="Structured", parameters=1_000),
]


def test_table_1_is_the_one_computed_by_hand():
    table = main_table(CELLS)
    assert table.header == ("task", "lora", "noah inherited", "noah retrained")
    assert shown(table) == {
        # Leads of 0.03, 0.04, 0.05: 0.04 ± 0.006.
        "cifar100": ["62.0 ± 1.2", "61.0 ± 0.6", "**66.0 ± 1.7**"],
        # Leads of -0.1, 0.1, 0.03: 0.01 ± 0.058, so nothing is bold.
        "dmlab": ["50.0 ± 0.0", "–", "51.0 ± 5.9"],
        "Natural mean (1)": ["62.0 ± 1.2", "61.0 ± 0.6", "**66.0 ± 1.7**"],
        "Structured mean (1)": ["50.0 ± 0.0", "–", "51.0 ± 5.9"],
        # By seed 0.55, 0.56, 0.57 and 0.515, 0.63, 0.61: a lead of 0.025 ± 0.031.
        "mean of group means": ["56.0 ± 0.6", "–", "58.5 ± 3.5"],
        "plain mean (2)": ["56.0 ± 0.6", "–", "58.5 ± 3.5"],
        "prompt parameters": ["1,000", "–", "2,000"],
    }
    notes = " ".join(table.notes)
    assert "Mean over 3 seeds" in notes and "–: not there" in notes and "binomial" not in notes


def test_the_two_means_differ_where_groups_differ_in_size():
    cells = [make_cell(t, test=v, group=g) for t, v, g in (("a", 0.6, "x"), ("b", 0.8, "x"), ("c", 0.1, "y"))]
    rows = shown(main_table(cells))
    assert rows["mean of group means"][0].startswith("40.0 ±") and rows["plain mean (3)"][0].startswith("50.0 ±")


def test_one_seed_among_several_is_marked():
    table = main_table([*over_seeds("a", "lora", 0.5, 0.6), make_cell("a", "vpt", test=0.8, n_test=100)])
    # A lead of 25 with an error of sqrt(4^2 + 5^2).
    assert shown(table)["a"] == ["**80.0 ± 4.0 †**", "55.0 ± 5.0"]
    assert any(note.startswith("†: one seed") for note in table.notes)


def test_few_shot_domain_and_transfer_cells_are_in_tables_of_their_own():
    others = [
        make_cell("food101", shots=1),
        make_cell("imagenet", tests={"v2": (0.5, 10)}),
        make_cell("cifar100", "transfer dmlab"),
    ]
    assert main_table(CELLS + others) == main_table(CELLS)
    assert main_table(others) is None is retraining_table(others)
    assert domain_table(CELLS) is None is few_shot_table(CELLS) and transfer_table(CELLS) is None


def test_the_papers_columns_stand_beside_ones_own_without_errors_and_never_in_bold():
    cells = over_seeds("pets", "lora", 0.5, 0.6, group="Natural")
    table = main_table(cells, paper=True)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert show(row["noah retrained (paper)"]) == "90.4" and show(row["full (paper)"]) == "86.9"
    assert show(row["lora"]) == "55.0 ± 5.0"
    parameters = dict(zip(table.header, table.rows[-1], strict=True))
    assert show(parameters["noah retrained (paper)"]) == "430,000"
    with pytest.raises(ValueError, match="the paper has no results for 'mine'"):
        main_table([make_cell("mine")], paper=True)


def test_ones_own_cells_with_the_papers_values_give_the_papers_means():
    groups, values = published_groups(), published_rows()["noah retrained"]
    rows = shown(main_table([make_cell(t, "noah retrained", test=v, group=groups[t]) for t, v in values.items()]))
    assert rows["mean of group means"][0].startswith("75.5 ±") and rows["kitti"][0].startswith("81.7 ±")
    beside = shown(main_table([make_cell(t, "lora", group=group) for t, group in groups.items()], paper=True))
    for row in ("Natural mean (7)", "Specialized mean (4)", "mean of group means", "plain mean (19)"):
        assert rows[row][0].split(" ")[0] == beside[row][-1]


def test_table_2_has_the_source_then_each_further_set_and_their_mean():
    cells = [
        make_cell("imagenet", method, seed, source, shots=16, tests={"v2": (v2, 100), "a": (a, 100)})
        for method, seed, source, v2, a in (
            ("lora", 0, 0.70, 0.60, 0.06),
            ("lora", 1, 0.72, 0.58, 0.08),
            ("noah retrained", 0, 0.74, 0.66, 0.12),
            ("noah retrained", 1, 0.75, 0.64, 0.10),
        )
    ]
    assert shown(domain_table(cells)) == {
        "imagenet, 16 shots (source)": ["71.0 ± 1.0", "**74.5 ± 0.5**"],
        "imagenet, 16 shots → v2": ["59.0 ± 1.0", "**65.0 ± 1.0**"],
        "imagenet, 16 shots → a": ["7.0 ± 1.0", "**11.0 ± 1.0**"],
        "imagenet, 16 shots: mean of further sets": ["33.0 ± 0.0", "**38.0 ± 1.0**"],
    }


def test_a_further_set_that_a_method_lacks_is_missing_and_so_is_its_mean():
    cells = [
        make_cell("imagenet", "lora", tests={"v2": (0.5, 100)}),
        make_cell("imagenet", "vpt", tests={"v2": (0.4, 100), "a": (0.1, 100)}),
    ]
    rows = shown(domain_table(cells))
    assert rows["imagenet → a"] == ["10.0 ± 3.0", "–"]
    assert rows["imagenet: mean of further sets"][1] == "–"


def test_table_3_pairs_inherited_and_retrained_seed_by_seed():
    table = retraining_table(CELLS)
    # 0.03, 0.05, 0.07: 0.05, standard deviation 0.02, over sqrt(3).
    assert shown(table)["Natural mean (1)"] == ["61.0 ± 0.6", "**66.0 ± 1.7**", "+5.0 ± 1.2"]
    assert shown(table)["Structured mean (1)"] == ["–", "51.0 ± 5.9", "–"]
    assert shown(table)["plain mean (2)"] == ["–", "58.5 ± 3.5", "–"]
    continued = over_seeds("cifar100", "noah continued", 0.68, 0.70, 0.72, group="Natural")
    further = retraining_table([*CELLS, *continued])
    assert further.header[1:] == ("noah inherited", "noah retrained", "noah continued", "retrained − inherited")
    assert shown(further)["Natural mean (1)"][2:] == ["**70.0 ± 1.2**", "+5.0 ± 1.2"]


def test_the_few_shot_table_has_tasks_and_their_mean_by_shots():
    cells = [
        *over_seeds("food101", "lora", 0.40, 0.44, shots=1),
        *over_seeds("pets", "lora", 0.60, 0.60, shots=1),
        *over_seeds("food101", "lora", 0.50, 0.52, shots=16),
    ]
    table = few_shot_table(cells)
    assert shown(table) == {
        "food101, 1 shot": ["42.0 ± 2.0"],
        "pets, 1 shot": ["60.0 ± 0.0"],
        "mean, 1 shot": ["51.0 ± 1.0"],
        "food101, 16 shots": ["51.0 ± 1.0"],
        "pets, 16 shots": ["–"],
        "mean, 16 shots": ["–"],
    }
    assert table.rules == (0, 3)


def test_the_transfer_table_is_the_difference_to_the_tasks_own_search():
    cells = [
        *over_seeds("cifar100", "noah retrained", 0.60, 0.64),
        *over_seeds("svhn", "noah retrained", 0.80, 0.80),
        *over_seeds("svhn", "transfer cifar100", 0.79, 0.77),
        *over_seeds("cifar100", "transfer svhn", 0.61, 0.65),
        *over_seeds("cifar100", "transfer food101", 0.50, 0.50),
    ]
    table = transfer_table(cells)
    assert table.header == ("source", "cifar100", "svhn")
    assert shown(table) == {
        "own search (accuracy)": ["62.0 ± 2.0", "80.0 ± 0.0"],
        "cifar100": ["–", "−2.0 ± 1.0"],
        "svhn": ["+1.0 ± 0.0", "–"],
        "food101": ["−12.0 ± 2.0", "–"],
    }


def test_a_transfer_without_the_tasks_own_search_is_missing():
    assert shown(transfer_table([make_cell("svhn", "transfer cifar100")])) == {
        "own search (accuracy)": ["–"],
        "cifar100": ["–"],
    }


def untested(task: str, method: str, **more):
    return make_cell(task, method, 0, None, n_test=0, **more)


def test_a_task_without_test_labels_has_dashes_and_a_note_in_every_table():
    note = "No labelled test images, so no test accuracy: kaggle."
    cells = [untested("kaggle", method) for method in ("lora", "noah inherited", "noah retrained")]
    table = main_table([*CELLS, *cells])
    assert shown(table)["kaggle"] == ["–", "–", "–"]
    assert shown(table)["cifar100"][0] == "62.0 ± 1.2"
    assert shown(table)["plain mean (3)"] == ["–", "–", "–"]
    assert note in table.notes and note in retraining_table([*CELLS, *cells]).notes
    assert note not in main_table(CELLS).notes
    few = few_shot_table([untested("kaggle", "lora", shots=1), make_cell("pets", "lora", 0, 0.5, shots=1)])
    assert shown(few)["kaggle, 1 shot"] == ["–"] and note in few.notes


def test_differences_leave_out_what_has_no_test_accuracy():
    cells = [untested("kaggle", method) for method in ("lora", "vpt")]
    cells += [make_cell("pets", "lora", 0, 0.5), make_cell("pets", "vpt", 0, 0.7)]
    table = differences_over_tasks(cells)
    assert [str(entry) for entry in table.rows[0][:3]] == ["lora − vpt", "1", "−20.0"]
    assert "No labelled test images, so no test accuracy: kaggle." in table.notes


def test_a_suite_without_any_test_labels_still_has_its_tables(tmp_path):
    for method in ("lora", "vpt"):
        for shots in (None, 1):
            write_cell(tmp_path / "suite", "kaggle", method, test=None, n_test=0, shots=shots)
    written = {path.name for path in write_tables(tmp_path / "suite", tmp_path / "tables")}
    assert {"tables.md", "table1.md", "few_shot.md"} <= written and "fig4_few_shot.png" not in written
