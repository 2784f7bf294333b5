"""What a run is asked to do."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from peft_noah.cli import app
from peft_noah.run.registry import method_of_entry
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design


@pytest.mark.parametrize(
    ("effort", "supernet_epochs", "generations"), [(None, 500, 15), (5.6, 500, 15), (3.3, 250, 8), (2, 109, 3)]
)
def test_effort_scales_supernet_and_search_alike(effort, supernet_epochs, generations):
    settings = RunSettings(strategy="noah", epochs=100, effort=effort)
    assert settings.training("supernet").epochs == supernet_epochs
    assert settings.search().generations == generations
    assert settings.training("subnet").epochs == 100


def test_the_least_effort_still_has_an_epoch_and_a_generation():
    settings = RunSettings(strategy="noah", epochs=1, effort=1.01)
    assert settings.training("supernet").epochs == 1 and settings.search().generations == 1


@pytest.mark.parametrize(
    ("strategy", "effort", "allowed"),
    [
        *(("noah", effort, "above 1 and") for effort in (1, -3, 1000, float("nan"))),
        *(("race", effort, "of at least 1 and") for effort in (0.5, 1000, float("nan"))),
    ],
)
def test_an_effort_that_cannot_be_is_refused(strategy, effort, allowed):
    with pytest.raises(ValueError, match=f"effort.* is .*; give a finite number {allowed}|effort is nan"):
        RunSettings(strategy=strategy, effort=effort)


def test_the_default_design_alone_is_trained_where_no_image_has_another_of_its_class():
    settings = RunSettings(strategy="race", epochs=100)
    assert [rung.designs for rung in settings.race(labels=[0, 1] * 500).rungs] == [4, 3, 2]
    assert [rung.designs for rung in settings.race(labels=range(40)).rungs] == [1]


@pytest.mark.parametrize(("effort", "winner"), [(None, 113), (2, 113), (4, 231), (1.5, 102), (1, 100)])
def test_effort_decides_how_long_the_winner_of_a_race_is_trained(effort, winner):
    assert RunSettings(strategy="race", epochs=100, effort=effort).training("winner").epochs == winner


def test_designs_have_the_same_learning_rate_everywhere_and_the_papers_methods_have_the_papers():
    settings = RunSettings(strategy="race", search_space="few_shot")
    rates = {stage: settings.training(stage).learning_rate for stage in ("subnet", "design", "winner")}
    assert rates == {"subnet": 5e-3, "design": 1e-3, "winner": 1e-3}
    methods = map(method_of_entry, ("race", "lora all", Design("mine", {"lora": 2}), "lora"))
    assert [method.training for method in methods] == ["winner", "design", "design", "subnet"]


@pytest.mark.parametrize("other", [{"supernet_epochs": 3}, {"generations": 3}])
def test_effort_and_what_it_decides_contradict_each_other(other):
    with pytest.raises(ValueError, match="give either it or them"):
        RunSettings(strategy="noah", effort=3, **other)


@pytest.mark.parametrize("shots", [0, -1, 1.5])
def test_shots_are_whole_numbers(shots):
    with pytest.raises(ValueError, match="shots is"):
        RunSettings(shots=shots)


def test_settings_survive_their_file(tmp_path):
    settings = RunSettings(
        strategy="race", effort=3, shots=4, other_tests={"sketch": "folder"}, task_name="pets", group="Natural"
    )
    settings.save(tmp_path / "settings.json")
    assert RunSettings.load(tmp_path / "settings.json") == settings


def test_a_file_of_version_01_loads_where_its_removed_option_did_nothing(tmp_path):
    RunSettings(seed=3).save(tmp_path / "settings.json")
    data = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps(data | {"risk": 0.0}))
    assert RunSettings.load(tmp_path / "old.json") == RunSettings(seed=3)
    (tmp_path / "old.json").write_text(json.dumps(data | {"risk": 0.1}))
    with pytest.raises(ValueError, match="risk is 0.1: this version has no such option"):
        RunSettings.load(tmp_path / "old.json")


def test_a_file_of_a_version_without_texts_says_what_tables_call_the_task(tmp_path):
    settings = RunSettings(seed=3, task_name="pets")
    data = dataclasses.asdict(settings)
    old = {**{name: value for name, value in data.items() if name != "task_name"}, "task": "pets"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert RunSettings.load(tmp_path / "old.json") == settings
    texts = {"task": "text-classification", "model": "a/b", "dataset": "a/b"}
    assert RunSettings.from_dict(texts).task == "text-classification"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"task": "translation"}, "task must be one of image-classification, text-classification, got 'translation'"),
        ({"max_tokens": 9}, "max_tokens is 9, but the task is image-classification. Leave it out"),
        ({"task": "text-classification"}, "text-classification needs a dataset: none for it comes with the package"),
        (
            {"task": "text-classification", "model": "a/b", "dataset": "a/b", "augment": True},
            "augment is True, but the task",
        ),
        ({"task": "text-classification", "model": "a/b", "dataset": "a/b", "max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_options_of_another_task_are_refused(given, fault):
    with pytest.raises(ValueError, match=fault):
        RunSettings(**given)


@pytest.mark.parametrize("option", [{"cache_gb": 0.3}, {"screen": False}, {"cache_gb": 1.0, "screen": True}])
def test_removed_options_that_changed_no_result_are_read_past(option, tmp_path):
    RunSettings(seed=3).save(tmp_path / "settings.json")
    data = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps(data | option))
    assert RunSettings.load(tmp_path / "old.json") == RunSettings(seed=3)


def of_the_command_line(*arguments, monkeypatch):
    """The settings that ``peft-noah run`` would start with."""
    asked = []
    monkeypatch.setattr("peft_noah.cli.run._open", lambda folder, settings, **options: asked.append(settings) or 1 / 0)
    CliRunner().invoke(app, ["run", *arguments])
    return asked[0]


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, (10, 30, 5)),
        ({"generations": 2}, (10, 30, 2)),
        ({"effort": 3.0}, (10, None, None)),
        ({"epochs": 20}, (20, None, None)),  # then all follows from it
        ({"dataset": "owner/name"}, (100, None, None)),
        ({"dataset": "owner/name", "supernet_epochs": 7}, (100, 7, None)),
    ],
)
def test_python_and_the_command_line_have_one_length_for_what_is_left_out(given, length, monkeypatch):
    given = {"strategy": "noah", **given}
    settings = RunSettings(**given)
    assert (settings.epochs, settings.supernet_epochs, settings.generations) == length
    typed = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert of_the_command_line(*typed, monkeypatch=monkeypatch) == settings


def test_every_option_of_the_command_line_is_read_into_its_field(monkeypatch):
    given = ["--baselines=none", "--image-mean=0.1,0.2,0.3", "--other-test=far=there", "--augment", "--compile"]
    settings = of_the_command_line(*given, monkeypatch=monkeypatch)
    assert settings == RunSettings(
        baselines=(), image_mean=(0.1, 0.2, 0.3), other_tests={"far": "there"}, augment=True, compile=True
    )


def test_a_stored_run_on_the_bundled_task_keeps_its_length(tmp_path):
    RunSettings(epochs=100).save(tmp_path / "settings.json")  # as one of version 0.1, started from Python
    loaded = RunSettings.load(tmp_path / "settings.json")
    assert loaded.training("supernet").epochs == 500 and loaded.search().generations == 15


def test_settings_are_described_without_torch():
    code = (
        "import sys, peft_noah.run.settings, peft_noah.cli;"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_names_no_strategy_is_of_the_time_when_noah_was_the_only_one(tmp_path):
    RunSettings().save(tmp_path / "settings.json")
    data = json.loads((tmp_path / "settings.json").read_text())
    assert data.pop("strategy") == "fixed" and data.pop("baselines") == []
    (tmp_path / "old.json").write_text(json.dumps(data))
    read = RunSettings.load(tmp_path / "old.json")
    assert (read.strategy, read.baselines) == ("noah", ("linear", "lora", "adapter", "vpt"))


@pytest.mark.parametrize(
    "option",
    [
        ("--supernet-epochs", "3"),
        ("--generations", "2"),
        ("--variant", "paper"),
        ("--population-size", "8"),
        ("--search-space", "wide"),
    ],
)
def test_an_option_of_the_search_is_refused_by_a_race(option, tmp_path):
    result = CliRunner().invoke(app, ["run", "--strategy", "race", *option, "--output", str(tmp_path / "run")])
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert f"{option[0]} has no effect on --strategy race: leave it out" in " ".join(result.output.split())


def test_an_option_of_a_race_is_refused_by_a_supernet(tmp_path):
    Design("mine", {"lora": 1}).save(tmp_path / "mine.json")
    words = ("supernet", "--design", tmp_path / "mine.json", "--output", tmp_path / "run")
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert "--design has no effect on --strategy noah: leave it out" in " ".join(result.output.split())


NO_NUMBERS = {
    "--effort": ("nan", "inf", "-inf", "1e999"),
    "--checkpoint-seconds": ("nan", "inf", "0", "-1"),
    "--gpus-per-cell": ("nan", "inf"),
    "--image-mean": ("nan,0,0", "0,0,1e999"),
    "--image-std": ("1,1,inf", "1,0,1", "1,1,-1"),
    "--budget": ("nan", "0", "-1", "99999999999999999999"),
    "--epochs": ("inf", "0", "99999999999999999999"),
    "--shots": ("1.5", "0"),
    "--seed": ("nan", "-1", "99999999999"),
    "--accumulate": ("0", "-2"),
    "--image-size": ("nan", "0", "100000"),
    "--max-tokens": ("0",),
    "--cpus-per-cell": ("nan", "0"),
}


@pytest.mark.parametrize("option", NO_NUMBERS)
def test_what_is_no_number_that_an_option_may_have_is_refused_by_its_name(option, tmp_path):
    for value in NO_NUMBERS[option]:
        more = ["--ray", "local"] if "per-cell" in option else []
        words = ["run", "--strategy", "race", f"{option}={value}", *more, "--output", str(tmp_path / "run")]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
        said = " ".join(result.output.split())
        assert result.exit_code == 2 and not (tmp_path / "run").exists(), (value, said)
        assert option in said or option.strip("-").replace("-", "_") in said, said
        assert re.search(
            r"a (finite|whole) number|must be three numbers|should be a valid integer|but the task", said
        ), said


def test_python_has_the_same_words_for_what_is_no_number():
    for given, said in (
        ({"effort": float("nan")}, "effort is nan; expected a finite number"),
        ({"budget": 10**30}, "budget is 10{30}; expected a whole number of at most 9,223,372"),
        ({"image_mean": (0.5, 0.5, float("inf"))}, "image_mean is .0.5, 0.5, inf.; expected .*, of finite numbers"),
        ({"image_std": (0.5, 0.5, 0.0)}, "a number of image_std is 0.0; give a finite number above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            RunSettings(**given)
