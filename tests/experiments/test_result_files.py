"""Results packed into one JSON-lines file give the same cells, tables and figures as the folder they come from."""

from __future__ import annotations

import json
import re

import pytest
from cell_files import make_report, write_cell
from test_output import write_suite
from tiny_runs import invoke

from peft_noah.experiments import result_files
from peft_noah.experiments.cells import count_failed, load_cells, load_searches
from peft_noah.experiments.output import write_tables
from peft_noah.experiments.result_files import list_files, load_reports, pack


def test_tables_and_figures_of_a_packed_suite_are_those_of_its_folder_byte_for_byte(tmp_path):
    suite = write_suite(tmp_path / "suite")
    (suite / "suite.json").write_text('{"plan": 1}')
    pack(suite, tmp_path / "suite.jsonl")
    folder = write_tables(suite, tmp_path / "a", top=2)
    packed = write_tables(tmp_path / "suite.jsonl", tmp_path / "b", top=2)
    assert [path.name for path in packed] == [path.name for path in folder]
    assert [path.read_bytes() for path in packed] == [path.read_bytes() for path in folder]
    lines = [json.loads(line) for line in (tmp_path / "suite.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == {path.relative_to(suite).as_posix() for path in suite.rglob("*.json")}
    assert all(json.loads((suite / line["path"]).read_text()) == line["data"] for line in lines)


def test_a_packed_file_counts_failed_cells_and_keeps_searches(tmp_path):
    pack(write_suite(tmp_path / "suite"), tmp_path / "suite.jsonl")
    assert count_failed(tmp_path / "suite.jsonl") == 1
    assert load_searches(tmp_path / "suite.jsonl") == load_searches(tmp_path / "suite")


def test_lines_in_another_order_give_the_same_cells(tmp_path):
    pack(write_suite(tmp_path / "suite"), tmp_path / "suite.jsonl")
    lines = (tmp_path / "suite.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(reversed(lines)))
    assert load_cells(tmp_path / "other.jsonl") == load_cells(tmp_path / "suite")


def test_folders_and_packed_files_are_read_together(tmp_path):
    write_cell(tmp_path / "one", seed=0)
    write_cell(tmp_path / "two", seed=1)
    pack([tmp_path / "one", tmp_path / "two"], tmp_path / "both.jsonl")
    assert [file.path for file in list_files(tmp_path / "both.jsonl", result_files.CELL)] == [
        "one/pets/seed0/results/lora.json",
        "two/pets/seed1/results/lora.json",
    ]
    assert [cell.seed for cell in load_cells([tmp_path / "both.jsonl", tmp_path / "one"])] == [0, 1]


def test_the_command_packs_a_suite_and_draws_from_the_packed_file_beside_it(tmp_path):
    write_cell(tmp_path / "suite")
    result = invoke("tables", tmp_path / "suite", "--jsonl", tmp_path / "new.jsonl")
    assert result.exit_code == 0, result.output
    assert invoke("tables", tmp_path / "new.jsonl").exit_code == 0
    beside = tmp_path / "tables" / "tables.md"
    assert beside.read_bytes() == (tmp_path / "suite" / "tables" / "tables.md").read_bytes()


def test_the_table_over_seeds_is_made_of_runs_in_one_file(tmp_path):
    folders = [tmp_path / f"seed{seed}" for seed in range(2)]
    for seed, folder in enumerate(folders):
        make_report(seed=seed, test=0.8 + 0.02 * seed).save(folder)
    pack(folders, tmp_path / "runs.jsonl")
    assert load_reports(tmp_path / "runs.jsonl") == load_reports(folders)
    texts = [invoke("table", *sources, "--markdown").output for sources in (folders, [tmp_path / "runs.jsonl"])]
    assert texts[0] == texts[1] and "81.0 ± 1.0" in texts[0]
    write_cell(tmp_path / "suite")
    for source in (tmp_path / "suite", tmp_path / "none"):
        result = invoke("table", source)
        assert result.exit_code == 2 and str(source) in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no finished cell"),
        ("{", "line 2 is not valid JSON"),
        ("[]", "line 2 is a mapping with path, data"),
        ('{"path": "a/seed0/results/lora.json"}', "misses data"),
        ('{"path": "a/seed0/results/lora.json", "data": null}', "the data in"),
        ('{"path": "a/seed0/lora.txt", "data": {}}', "which no file of results has"),
        ('{"path": 3, "data": {}}', "has the path 3"),
        (json.dumps({"path": "x" * 2_000 + "/results/a.json", "data": {}}), "which no file of results has"),
        ('{"path": "a/seed0/results/lora.json", "data": {}}', "line 2 does not hold a finished cell: a report has"),
    ],
)
def test_a_broken_line_is_refused_with_its_number(line, message, tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text('{"path": "suite.json", "data": {}}\n' + line)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_cells(path)
    assert str(path) in str(error.value)


def test_two_lines_with_different_results_of_one_cell_are_refused(tmp_path):
    path = tmp_path / "suite.jsonl"
    reports = (make_report(test=0.8), make_report(test=0.9))
    lines = [json.dumps({"path": "pets/seed0/results/lora.json", "data": report.to_dict()}) for report in reports]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 1 and .*line 2 hold different results"):
        load_cells(path)


def test_what_cannot_be_packed_leaves_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    write_cell(tmp_path / "suite")
    write_cell(tmp_path / "other" / "suite")
    for sources, name, message in (
        (tmp_path / "empty", "a.jsonl", "no results in"),
        (tmp_path / "none", "a.jsonl", "there is no folder"),
        (tmp_path / "suite", "a.json", "does not end in .jsonl"),
        ([tmp_path / "suite", tmp_path / "other" / "suite"], "a.jsonl", "several folders are named 'suite'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            pack(sources, tmp_path / name)
        assert not (tmp_path / name).exists()
