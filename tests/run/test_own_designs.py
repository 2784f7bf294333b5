"""Designs of a user's own as JSON files: as methods of a run or a suite, and as what races."""

import json
import pickle

import pytest
from conftest import make_model
from tiny_runs import invoke, write_task

from peft_noah import Design
from peft_noah.experiments.plan import Plan
from peft_noah.results.report import RunReport
from peft_noah.run.settings import RunSettings
from peft_noah.searching.race import Race

ALL = {"name": "All of it", "dims": {"lora": 2}, "options": {"target_modules": "all-linear", "lora_scale": 4.0}}
MIX = {"name": "mix", "dims": {"lora_fc1": [1, 0, 2, 2], "ssf": 1, "prefix": 2}, "options": {"adapter_scale": 0.5}}
HEAD = {"name": "head", "dims": {"bitfit": 1}, "head_start": True, "prior": 0.01}


def whole(design):
    return {"options": {}, "head_start": False, "prior": 0.0, **design}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("designs")
    make_model().save_pretrained(folder / "vit")
    (folder / "tasks").mkdir()
    write_task(folder / "tasks" / "red", train=24, validation=12)
    for name, design in (("all", ALL), ("mix", MIX), ("head", HEAD)):
        (folder / f"{name}.json").write_text(json.dumps(design))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def start(*options):
    return invoke("run", "--strategy", "race", "--model", "vit", "--dataset", "tasks/red", "--epochs", "4", *options)


@pytest.fixture(scope="module")
def raced(work):
    files = ["--design", "all.json", "--design", "mix.json", "--baselines", "linear,mix.json"]
    done = start(*files, "--epochs", "48", "--output", "run")  # enough steps for a first rung
    assert done.exit_code == 0, done.output
    for name in ("all", "mix"):  # a later stage does not need them
        (work / f"{name}.json").rename(work / f"{name}.moved")
    done = invoke("baseline", "run", "--method", "head.json")
    for name in ("all", "mix"):
        (work / f"{name}.moved").rename(work / f"{name}.json")
    assert done.exit_code == 0, done.output
    return work / "run"


def test_designs_that_are_given_race_instead_of_those_of_the_package(raced):
    race = Race.load(raced / "race.json")
    assert race.designs == (Design(**ALL), Design(**MIX)) and race.told
    assert json.loads((raced / "settings.json").read_text())["designs"] == [whole(ALL), whole(MIX)]
    config = json.loads((raced / "best" / "adapter_config.json").read_text())
    assert config["architecture"] == race.designs[race.winner].architecture(4).to_dict()


def test_a_design_is_a_method_of_the_table_with_an_adapter_and_a_card(raced):
    report = RunReport.load(raced / "results.json")
    assert {result.method for result in report.results} == {"linear", "race", "design mix", "design head"}
    parameters = {result.method: result.parameters for result in report.results}
    assert parameters["design head"] == 4 * (4 * 24 + 48 + 24 + 2 * 24)  # the biases of a block, four times
    config = json.loads((raced / "adapter-design-mix" / "adapter_config.json").read_text())
    assert config["architecture"] == Design(**MIX).architecture(4).to_dict() and config["adapter_scale"] == 0.5
    assert Design.load(raced / "adapter-design-mix" / "design.json") == Design(**MIX)
    assert (raced / "adapter-design-head" / "README.md").exists()


def test_another_design_of_the_same_name_does_not_pass_for_it(raced, work):
    (work / "other.json").write_text(json.dumps({**HEAD, "head_start": False}))
    done = invoke("baseline", "run", "--method", "other.json")
    assert done.exit_code == 2 and "holds another design of this name already" in " ".join(done.output.split())
    assert invoke("baseline", "run", "--method", "head.json").exit_code == 0


def test_one_design_alone_is_trained_without_a_race(work):
    done = start("--design", "mix.json", "--output", "one")
    assert done.exit_code == 0, done.output
    race = Race.load(work / "one" / "race.json")
    assert race.designs == (Design(**MIX),) and not race.told


def test_a_suite_has_it_as_a_method_with_its_cost(work):
    words = ("suite", "tasks", "--model", "vit", "--seeds", "0", "--epochs", "1", "--output", "suite")
    planned = invoke(*words, "--methods", "race,mix.json", "--design", "mix.json", "--dry-run")
    assert planned.exit_code == 0 and "design mix" in planned.output, planned.output
    entries = [line.split() for line in planned.output.splitlines() if " race " in line or " mix " in line]
    assert len({[word for word in entry if "," in word][0] for entry in entries}) == 1, (
        planned.output
    )  # what races is it
    done = invoke(*words, "--methods", "linear,mix.json")
    assert done.exit_code == 0, done.output
    assert Plan.load(work / "suite").designs == (Design(**MIX),)
    assert (work / "suite" / "red" / "seed0" / "results" / "design-mix.json").exists()
    assert invoke("progress", "suite").exit_code == 0
    (work / "other.json").write_text(json.dumps({**MIX, "options": {}}))
    other = invoke(*words, "--methods", "other.json")
    assert other.exit_code == 2 and "the suite has other designs by the names mix" in " ".join(other.output.split())
    assert invoke("tables", "suite").exit_code == 0
    assert "design mix" in (work / "suite" / "tables" / "tables.md").read_text()


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ({"dims": {"lorra": 2}}, "unknown prompt module 'lorra' (known: lora, adapter, vpt"),
        ({"dims": {"ssf": 2}}, "ssf is there or not: its dim is 1 or 0, not 2"),
        ({"dims": {"lora": 2.5}}, "has 2.5 in row 'lora'; give one whole number for all blocks, or a list"),
        ({"dims": {"lora": [1, 2.5]}}, "the dim of row 'lora' in block 1 is 2.5"),
        ({"options": {"rank": 3}}, "option 'rank' of design 'wrong' is not known (known: target_modules"),
        ({"options": {"lora_scale": "big"}}, "lora_scale is 'big'; give a finite number"),
        ({"options": {"architecture": {}}}, "option 'architecture' of design 'wrong' is not known"),
        ({"prior": 3}, "the prior of design 'wrong' is 3"),
        ({"name": "..."}, "give a name with letters or digits"),
        ({"scale": 1}, "a design has name, dims, options, head_start, prior; this one has unknown ['scale']"),
    ],
)
@pytest.mark.parametrize("where", [("--design",), ("--baselines",)], ids=str)
def test_what_is_wrong_in_a_file_is_named_before_anything_is_written(where, design, said, work):
    (work / "wrong.json").write_text(json.dumps({"name": "wrong", "dims": {"lora": 2}, **design}))
    done = start(*where, "wrong.json", "--output", "none")
    text = " ".join(done.output.split())
    assert done.exit_code == 2 and "wrong.json does not hold a design: " in text and said in text, text
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--design", "six.json"), "design 'six' does not fit this backbone: design 'six' has 6 dims in row 'lora'"),
        (("--baselines", "gate.json"), "design 'gate' does not fit this backbone: row 'lora_gate' is for a Linear"),
        (("--design", "mix.json", "--design", "mix.json"), "designs 'mix' and 'mix' would have the same files"),
        (("--design", "mix.json", "--strategy", "noah"), "--design has no effect on --strategy noah"),
        (("--design", "far.json"), "cannot read far.json"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(options, said, work):
    (work / "six.json").write_text(json.dumps({"name": "six", "dims": {"lora": [2] * 6}}))
    (work / "gate.json").write_text(json.dumps({"name": "gate", "dims": {"lora_gate": 2}}))
    done = start(*options, "--output", "none")
    assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    assert not (work / "none").exists()


def test_a_design_goes_to_other_machines_and_into_settings_as_plain_data():
    design = Design("mine", {"lora": (1, 2)}, {"target_modules": ("query", "fc1")})
    assert pickle.loads(pickle.dumps(design)) == design
    settings = RunSettings(baselines=("lora", design.to_dict()), epochs=1, strategy="race")
    again = RunSettings.from_dict(
        json.loads(json.dumps({"baselines": list(settings.baselines), "epochs": 1, "strategy": "race"}))
    )
    assert again.baselines == settings.baselines and not settings.differences(again)
