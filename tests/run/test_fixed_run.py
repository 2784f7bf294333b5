"""A run without a search: the default design, measured and then trained on all labelled images."""

import json

import pytest
from clusters import Here, assert_same_runs
from tiny_runs import invoke, refused

from peft_noah.results.report import RunReport
from peft_noah.run.context import RunContext
from peft_noah.run.on_cluster import run_everything_on
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design
from peft_noah.searching.portfolio import PORTFOLIO


@pytest.fixture(scope="module")
def job(task, backbone, tmp_path_factory):
    """A run of the command line: its arguments, its folder, what it said."""
    folder = tmp_path_factory.mktemp("fixed") / "run"
    arguments = [
        "run",
        "--strategy",
        "fixed",
        "--model",
        backbone,
        "--dataset",
        task,
        "--epochs",
        "1",
        "--output",
        folder,
    ]
    return arguments, folder, invoke(*arguments)


def test_it_leaves_the_default_design_in_best_with_its_validation_accuracy(job):
    arguments, folder, done = job
    assert done.exit_code == 0, done.output
    (result,) = RunReport.load(folder / "results.json").results
    assert result.method == "lora all" and result.validation is not None and result.test is not None
    assert "use best/, a copy of adapter-lora-all/: lora all was best" in " ".join(done.output.split())
    config = json.loads((folder / "best" / "adapter_config.json").read_text())
    assert config["architecture"] == PORTFOLIO[0].architecture(4).to_dict()
    assert not (folder / "race.json").exists() and not (folder / "supernet").exists()
    kept = (folder / "best" / "adapter_model.safetensors").read_bytes()
    assert invoke(*arguments).exit_code == 0 and (folder / "best" / "adapter_model.safetensors").read_bytes() == kept


def test_on_a_cluster_it_leaves_the_same_files(job, tmp_path):
    run_everything_on(Here(), RunContext(tmp_path / "run", RunSettings.load(job[1] / "settings.json")))
    assert_same_runs(tmp_path / "run", job[1])
    assert_same_runs(job[1], tmp_path / "run")


def test_it_has_nothing_to_search(job):
    searched = invoke("search", job[1])
    assert searched.exit_code == 2
    assert "a run of strategy fixed has nothing to search. Start one with --strategy race or noah" in " ".join(
        searched.output.split()
    )


def test_a_baseline_that_is_its_own_method_is_trained_once(task, backbone, tmp_path):
    words = ["run", "--strategy", "fixed", "--model", backbone, "--dataset", task, "--epochs", "1"]
    done = invoke(*words, "--baselines", "linear,lora-all", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert [result.method for result in RunReport.load(tmp_path / "run" / "results.json").results] == [
        "linear",
        "lora all",
    ]


@pytest.mark.parametrize(
    "option", [("--budget", "10"), ("--effort", "2"), ("--generations", "2"), ("--search-space", "wide")]
)
def test_what_decides_a_search_is_refused(option, task, backbone, tmp_path):
    words = ("run", "--strategy", "fixed", "--model", backbone, "--dataset", task)
    refused(*words, *option, folder=tmp_path / "run", message=f"{option[0]} has no effect on --strategy fixed")


def test_it_is_refused_in_python_too():
    for options in ({"budget": 10}, {"effort": 2.0}, {"designs": ({"name": "mine", "dims": {"lora": 1}},)}):
        with pytest.raises(ValueError, match="has no effect on strategy fixed: leave it out, or ask for race"):
            RunSettings(strategy="fixed", **options)


def test_designs_that_would_race_are_refused(task, backbone, tmp_path):
    Design("mine", {"lora": 1}).save(tmp_path / "mine.json")
    words = ("run", "--strategy", "fixed", "--model", backbone, "--dataset", task, "--design", tmp_path / "mine.json")
    refused(*words, folder=tmp_path / "run", message="--design has no effect on --strategy fixed")
