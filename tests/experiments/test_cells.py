"""Cells are read from their files alone, in one order, and what is wrong with a file is said by its name."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from cell_files import make_cell, make_report, write_cell

from peft_noah.architecture import Architecture
from peft_noah.experiments import result_files
from peft_noah.experiments.cells import count_failed, load_cells


def test_a_cell_holds_what_its_file_says(tmp_path):
    rows = {"lora": [1, 0], "vpt": [5, 5]}
    write_cell(tmp_path, "food101", "noah retrained", 2, 0.7, shots=4, architecture=rows, tests={"v2": (0.5, 10)})
    (cell,) = load_cells(tmp_path)
    assert cell.key == ("food101", 4, "noah retrained", 2)
    assert (cell.group, cell.result.test, cell.result.tests) == ("", 0.7, {"v2": (0.5, 10)})
    assert cell.architecture == Architecture(rows) and cell.settings["epochs"] == 10
    assert cell.backbone["model_type"] == "vit"


def test_cells_come_in_the_order_of_their_paths_whatever_wrote_them_first(tmp_path):
    for task, method, seed in (("b", "lora", 0), ("a", "vpt", 1), ("a", "lora", 1), ("a", "lora", 0)):
        write_cell(tmp_path, task, method, seed)
    keys = [(cell.task, cell.seed, cell.method) for cell in load_cells(tmp_path)]
    assert keys == [("a", 0, "lora"), ("a", 1, "lora"), ("a", 1, "vpt"), ("b", 0, "lora")]


def test_failed_cells_and_drafts_are_no_cells_and_are_counted_until_they_are_run_anew(tmp_path):
    done = write_cell(tmp_path)
    for slug in ("vpt", "lora"):
        done.with_name(f"{slug}.error.json").write_text("{}")
    done.with_name(".vpt.json.1234.tmp").write_text("{")
    done.with_name(".vpt.json").write_text("{")
    assert len(load_cells(tmp_path)) == 1
    assert count_failed(tmp_path) == 1  # lora has a result by now


def test_several_folders_are_read_together_and_equal_results_count_once(tmp_path):
    write_cell(tmp_path / "one", seed=0)
    write_cell(tmp_path / "two", seed=1)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    folders = [tmp_path / name for name in ("one", "two", "copy")]
    assert [cell.seed for cell in load_cells(folders)] == [0, 1]


def test_the_folder_of_one_run_is_read_too(tmp_path):
    path = write_cell(tmp_path, "pets", seed=3)
    write_cell(tmp_path, "dtd", seed=3)
    assert [cell.task for cell in load_cells(path.parents[1])] == ["pets"]


def test_two_files_with_different_results_of_one_cell_are_refused(tmp_path):
    first = write_cell(tmp_path / "one", "food101", shots=2)
    second = write_cell(tmp_path / "two", "food101", shots=2, test=0.1)
    with pytest.raises(
        ValueError, match="different results of method 'lora' on task 'food101' at 2 shots with seed 0"
    ) as error:
        load_cells([tmp_path / "one", tmp_path / "two"])
    assert str(first) in str(error.value) and str(second) in str(error.value)


def task(**change: object) -> str:
    data = make_report().to_dict()
    return json.dumps({**data, "task": {**data["task"], **change}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (task()[:-30], "Was it cut short?"),
        ("", "is not valid JSON"),
        ("[]", "a report is a mapping"),
        (task(name=3), "the name of its task is 3"),
        (task(name="\n"), "the name of its task is"),
        (task(name="x" * 201), "the name of its task is"),
        (task(group=None), "the group of its task is None"),
        (task(shots=0), "the shots of its task is 0; give a whole number from 1"),
        (task(shots=1.5), "the shots of its task is 1.5"),
        (json.dumps({**make_report().to_dict(), "results": []}), "a cell has 1 result; this one has 0"),
    ],
)
def test_a_broken_file_is_named_with_what_to_do(text, message, tmp_path):
    path = write_cell(tmp_path)
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_cells(tmp_path)
    assert str(path) in str(error.value)
    assert "Run the suite again with --retry" in str(error.value)


def test_a_missing_or_empty_folder_and_one_with_too_many_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no folder"):
        load_cells(tmp_path / "none")
    with pytest.raises(ValueError, match="no finished cell in"):
        load_cells(tmp_path)
    write_cell(tmp_path, seed=0)
    write_cell(tmp_path, seed=1)
    with monkeypatch.context() as few:
        few.setattr(result_files, "MAX_FILES", 1)
        with pytest.raises(ValueError, match="more than 1 files"):
            load_cells(tmp_path)
    monkeypatch.setattr(result_files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes of results"):
        load_cells(tmp_path)


def test_a_cell_is_a_frozen_view():
    with pytest.raises(AttributeError):
        make_cell().seed = 3
