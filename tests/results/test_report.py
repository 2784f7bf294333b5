"""The results of a run: the file, the table, and what it sets in bold."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from peft_noah.results.report import MethodResult, RunReport

RESULT = MethodResult("lora", 0, 24_576, 1_290, 0.75, 0.8, 200, 2_000, 12.34)


def make_report(*results: MethodResult, **entries: object) -> RunReport:
    return RunReport(results=list(results), **entries)


def over_seeds(method: str, *tests: float) -> list[MethodResult]:
    return [replace(RESULT, method=method, seed=seed, test=test) for seed, test in enumerate(tests)]


def rows(report: RunReport) -> list[list[str]]:
    """Cells of the Markdown table of results below its header."""
    lines = report.to_markdown().split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def bold(report: RunReport) -> tuple[list[str], list[str]]:
    """Methods in bold in Markdown, and in the terminal."""
    table = report.to_rich_table()
    names, tests = table.columns[0].cells, table.columns[4].cells
    return (
        [row[0].strip(" †") for row in rows(report) if "**" in row[4]],
        [name.plain.strip(" †") for name, test in zip(names, tests, strict=True) if test.style == "bold"],
    )


def show(report: RunReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    console.print(report.to_rich_table())
    return console.file.getvalue()


FULL = make_report(
    replace(RESULT, method="linear probe", parameters=0, validation=None, test=0.6),
    RESULT,
    task={"source": "fashion_mnist", "sizes": {"train": 800}, "preprocessing": {"hidden": 1}},
    backbone={"model": "vit-tiny-64"},
    preprocessing={"mean": [0.5, 0.5, 0.5]},
    settings={"epochs": 10, "budget": None},
    versions={"torch": "2.13.0"},
    architecture={"lora": [8, 0], "vpt": [1, 1]},
    notes=["one *core*"],
)


# --- one result ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": ""}, "the method is named ''"),
        ({"method": "\n"}, "the method is named"),
        ({"method": "x" * 201}, "1 to 200 letters"),
        ({"method": 3}, "the method is named 3"),
        ({"seed": -1}, "seed of 'lora' is -1"),
        ({"parameters": 1.5}, "parameters of 'lora' is 1.5"),
        ({"head_parameters": True}, "head_parameters of 'lora' is True"),
        ({"validation": 75.0}, "validation of 'lora' is 75.0; give a share from 0 to 1, not percent"),
        ({"validation": 0.5, "n_validation": 0}, "n_validation of 'lora' is 0; give a whole number from 1"),
        ({"test": None}, "test of 'lora' is None with 2,000 test images"),
        ({"test": float("nan")}, "test of 'lora' is nan"),
        ({"n_test": 0}, "n_test of 'lora' is 0; give a whole number from 1"),
        ({"seconds": -1}, "seconds of 'lora' is -1; give a finite number of at least 0"),
        ({"seconds": float("inf")}, "seconds of 'lora' is inf"),
        ({"seconds": "1"}, "seconds of 'lora' is '1'"),
    ],
)
def test_a_result_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(RESULT, **change)


def test_a_method_trained_on_all_images_has_no_validation_images_to_count():
    assert replace(RESULT, validation=None, n_validation=0).validation is None


# --- the file ------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    FULL.save(tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "results.md"]
    assert RunReport.load(folder) == RunReport.load(folder / "results.json") == FULL
    assert (folder / "results.md").read_text(encoding="utf-8") == FULL.to_markdown()


def test_saving_again_replaces_the_files_and_leaves_no_other(tmp_path):
    FULL.save(tmp_path)
    make_report(RESULT).save(tmp_path)
    assert RunReport.load(tmp_path).results == [RESULT]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": [RESULT, replace(RESULT, test=0.1)]}, "two results are of method 'lora' with seed 0"),
        ({"results": [RESULT] * 10_001}, "give a list of at most 10,000"),
        ({"settings": {"x": float("nan")}}, "only plain data"),
        ({"settings": {"x": object()}}, "only plain data"),
        ({"versions": ["torch"]}, "versions is ['torch']; give a mapping"),
        ({"notes": "text"}, "notes is 'text'; give a list"),
        ({"notes": ["x" * 10_001]}, "at most 10,000 letters"),
        ({"architecture": {"lora": [1, -1]}}, "is -1"),
    ],
)
def test_a_report_that_cannot_be_kept_leaves_no_file(change, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(FULL, **change).save(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def edit(**change: object) -> str:
    return json.dumps({**FULL.to_dict(), **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        (edit()[:-20], "Was it cut short?"),
        ("[]", "a report is a mapping"),
        ('{"candidates": []}', "misses results"),
        (edit(extra=1), "unknown ['extra']"),
        (edit(results={}), "results is {}; give a list"),
        (edit(results=[{"method": "lora"}]), "a result has method"),
        (edit(results=[asdict(RESULT) | {"test": 80.0}]), "not percent"),
        (edit(results=[asdict(RESULT)] * 2), "two results"),
        (edit(results=[1]), "a result is a mapping"),
        (edit(task=3), "task is 3; give a mapping"),
        (edit(settings={"x": float("inf")}), "Infinity is no JSON number"),
        (edit(notes=[1]), "a note is 1"),
        (edit(architecture=[1]), "an architecture is a mapping"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RunReport.load(tmp_path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*results\.json: No such file"):
        RunReport.load(tmp_path / "results.json")


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "results.json", "wb") as file:
        file.truncate(33 * 1024**2)
    with pytest.raises(ValueError, match=r"results\.json .*33,554,432"):
        RunReport.load(tmp_path)


# --- the table -----------------------------------------------------------------------------------------------------


def test_one_seed_shows_the_binomial_standard_error_and_says_so():
    report = make_report(replace(RESULT, seconds=1234.5))
    # sqrt(0.75 * 0.25 / 200) = 0.0306, sqrt(0.8 * 0.2 / 2000) = 0.0089
    assert rows(report) == [["lora", "24,576", "1,290", "75.0 ± 3.1", "80.0 ± 0.9", "1,234"]]
    text = report.to_markdown()
    assert "± s.e.: one seed, so the binomial standard error over images" in text
    assert "n = 200 (validation) and 2,000 (test)" in text
    assert "over 3 seeds" not in text and "Bold" not in text and "†" not in text


def test_several_seeds_show_their_mean_and_its_standard_error_and_say_so():
    results = [
        replace(RESULT, seed=0, validation=0.7, test=0.80, parameters=10, seconds=10.0),
        replace(RESULT, seed=1, validation=0.8, test=0.84, parameters=20, seconds=20.0),
        replace(RESULT, seed=2, validation=0.9, test=0.85, parameters=36, seconds=60.0),
    ]
    report = make_report(*results)
    # Sample standard deviations 0.1 and 0.026458, over sqrt(3).
    assert rows(report) == [["lora", "22", "1,290", "80.0 ± 5.8", "83.0 ± 1.5", "30.0"]]
    text = report.to_markdown()
    assert "mean over 3 seeds and its standard error" in text
    assert "binomial" not in text


def test_a_single_seed_among_several_is_marked():
    report = make_report(*over_seeds("a", 0.8, 0.9), *over_seeds("b", 0.5))
    assert [row[0] for row in rows(report)] == ["a", "b †"]
    text = report.to_markdown()
    assert "mean over 2 seeds" in text
    assert "\n†: one seed, so the binomial standard error" in text


def test_methods_stand_in_the_order_of_their_first_result():
    report = make_report(*over_seeds("b", 0.5), *over_seeds("a", 0.5, 0.5), replace(RESULT, method="b", seed=1))
    assert [row[0] for row in rows(report)] == ["b", "a"]


def test_no_validation_accuracy_is_a_dash_with_a_footnote():
    assert [row[3] for row in rows(FULL)] == ["–", "75.0 ± 3.1"]
    assert "–: trained on train and validation images together" in FULL.to_markdown()
    assert "–: trained" not in make_report(RESULT).to_markdown()
    partly = make_report(RESULT, replace(RESULT, seed=1, validation=None))
    assert rows(partly)[0][3] == "–"


@pytest.mark.parametrize(
    ("results", "winner"),
    [
        # Errors of 0.0089 each combine to 0.0126: a lead of 0.01 is none, one of 0.02 is.
        ([*over_seeds("a", 0.80), *over_seeds("b", 0.81)], []),
        ([*over_seeds("a", 0.80), *over_seeds("b", 0.82)], ["b"]),
        ([*over_seeds("a", 0.80), *over_seeds("b", 0.80)], []),
        (over_seeds("a", 0.80), []),
        # Spread over seeds of 0.1, but b leads by 0.01 in each: the pairs decide.
        ([*over_seeds("a", 0.7, 0.8, 0.9), *over_seeds("b", 0.71, 0.81, 0.911)], ["b"]),
        # The same lead, once the other way round: mean 0.01, error 0.02.
        ([*over_seeds("a", 0.80, 0.80, 0.80), *over_seeds("b", 0.83, 0.77, 0.83)], []),
        # One seed in common says nothing of the spread: both errors combined, 0.05 and 0.0089.
        ([*over_seeds("a", 0.80, 0.70), *over_seeds("b", 0.80)], []),
        ([*over_seeds("a", 0.80, 0.70), *over_seeds("b", 0.85)], ["b"]),
    ],
)
def test_bold_is_only_a_lead_larger_than_its_standard_error(results, winner):
    report = make_report(*results)
    assert bold(report) == (winner, winner)


def test_the_rule_for_bold_is_in_the_footnote():
    assert "Bold: the best test accuracy, only where its lead over the runner-up is larger" in FULL.to_markdown()


def test_the_markdown_names_what_was_run():
    text = FULL.to_markdown()
    assert "- source: fashion\\_mnist\n- sizes: train 800\n" in text
    assert "## Backbone\n\n- model: vit-tiny-64\n" in text
    assert "- epochs: 10\n- budget: none\n" in text
    assert "- one \\*core\\*\n" in text
    assert "| LoRA (rank)  |   8 |   0 |" in text
    assert "hidden" not in text


def test_an_empty_report_is_a_table_without_rows(tmp_path):
    assert rows(RunReport()) == []
    RunReport().save(tmp_path)
    assert RunReport.load(tmp_path) == RunReport()
    assert "method" in show(RunReport())


def test_the_terminal_shows_the_same_cells_within_80_columns():
    report = make_report(*FULL.results, replace(RESULT, method="noah retrained", parameters=1_234_567), notes=["so"])
    text = re.sub("\x1b\\[[0-9;]*m", "", show(report))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["noah", "retrained", "1,234,567", "1,290", "75.0", "±", "3.1", "80.0", "±", "0.9", "12.3"] in lines
    assert ["linear", "probe", "0", "1,290", "–", "60.0", "±", "1.1", "12.3"] in lines
    assert ["so"] in lines


@pytest.mark.parametrize("name", ["[bold red]x[/]", "a|b", "<b>x</b>", "**x**", "a\nb", "\x1b[31mx", "x\u202ey\ud800"])
def test_a_name_is_shown_literally_and_breaks_nothing(name, tmp_path):
    report = make_report(replace(RESULT, method=name), notes=[name], settings={name: name})
    report.save(tmp_path)
    assert RunReport.load(tmp_path) == report
    assert [len(row) for row in rows(report)] == [6]
    plain = " ".join(name.replace("\x1b", " ").replace("\u202e", " ").replace("\ud800", " ").split())
    assert f"  {plain}  " in re.sub("\x1b\\[[0-9;]*m", "", show(report, width=100))


def test_further_test_sets_survive_the_file_and_wrong_ones_are_refused(tmp_path):
    numbers = {
        "parameters": 5,
        "head_parameters": 2,
        "validation": None,
        "n_validation": 0,
        "n_test": 10,
        "seconds": 1,
    }
    result = MethodResult("lora", 0, test=0.5, tests={"sketch": (0.25, 40)}, **numbers)
    RunReport(results=[result]).save(tmp_path)
    assert RunReport.load(tmp_path).results[0].tests == {"sketch": (0.25, 40)}
    for wrong in ({"sketch": 0.25}, {"sketch": (25, 40)}, {"": (0.5, 4)}, {"a": ("0.5", 4)}, {"a": (0.5, 0)}, [1]):
        with pytest.raises(ValueError, match="lora|sketch|'a'|accuracy"):
            MethodResult("lora", 0, test=0.5, tests=wrong, **numbers)


def test_a_run_without_test_labels_shows_a_dash_and_says_why(tmp_path):
    untested = replace(RESULT, test=None, n_test=0)
    report = make_report(untested, replace(untested, method="noah retrained", validation=0.9))
    report.save(tmp_path)
    loaded = RunReport.load(tmp_path)
    assert [result.test for result in loaded.results] == [None, None]
    assert [row[4] for row in rows(loaded)] == ["–", "–"]
    text = loaded.to_markdown()
    assert "there are no labelled test images, so it was not measured" in text
    assert "with n = 200 (validation); the spread" in text and "(test)" not in text


def test_a_test_accuracy_needs_images():
    with pytest.raises(ValueError, match="n_test"):
        replace(RESULT, n_test=0)
