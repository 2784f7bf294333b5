"""A method is one entry: known to runs, suites, tables, figures and help once it is registered."""

import json
import subprocess
import sys

import pytest
from conftest import make_model
from tiny_runs import invoke, write_task

from peft_noah.experiments.plan import Plan
from peft_noah.experiments.suite import Suite
from peft_noah.experiments.tasks import Task
from peft_noah.results.report import RunReport
from peft_noah.run.context import RunContext
from peft_noah.run.methods import LORA
from peft_noah.run.registry import (
    Method,
    Stage,
    all_methods,
    baselines,
    find_method,
    method_of_row,
    register_method,
    table_order,
    transfer,
    unregister_method,
)
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import run_method


def train_biases(run):
    """BitFit: all biases and the classifier."""
    model = run.fresh_backbone()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    return model


BITFIT = Method("bitfit", "all biases train", train_biases)


@pytest.fixture
def bitfit():
    yield register_method(BITFIT)
    unregister_method("bitfit")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    make_model().save_pretrained(folder / "vit")
    write_task(folder / "red")
    return folder


def test_one_more_baseline_is_one_entry_in_runs_suites_and_their_cost(bitfit, task, tmp_path):
    biases = sum(
        w.numel() for name, w in make_model().named_parameters() if name.endswith("bias") and "classifier" not in name
    )
    settings = RunSettings(model=str(task / "vit"), epochs=1, baselines=("linear", "bitfit"))
    plan = Plan((Task("red", str(task / "red"), ""),), ("bitfit", "linear"), (0,), settings)
    suite = Suite(tmp_path / "suite", plan)
    assert [cell.method for cell in suite.cells] == ["linear", "bitfit"]
    from peft_noah.experiments.cost import cell_costs

    linear, costs = cell_costs(suite)
    assert (costs.parameters, costs.exact, linear.parameters) == (biases, True, 0) and costs.cost > linear.cost
    assert suite.run().count("done") == 2
    report = RunReport.load(tmp_path / "suite" / "red" / "seed0" / "results.json")
    assert [result.method for result in report.results] == ["linear", "bitfit"]
    assert report.results[1].parameters == biases and report.architecture is None
    assert invoke("tables", tmp_path / "suite").exit_code == 0
    assert "bitfit" in (tmp_path / "suite" / "tables" / "tables.md").read_text()
    assert not list((tmp_path / "suite" / "red" / "seed0").glob("adapter*"))


def test_a_method_builds_on_a_stage_of_its_own_that_has_measured_it(task, tmp_path):
    def race(run):
        run.on_main((run.folder / "race.json").write_text, "{}")
        run.on_main(run.files.note_stage, "race", 100.0, 10**9)

    stage = Stage("race", "race.json", race, lambda settings, sizes: 7.0 * sizes["train"])
    method = Method("race", "", LORA.start, needs=stage, validation=lambda run: (0.5, 18), keeps="adapter-race")
    run = RunContext(tmp_path / "run", RunSettings(model=str(task / "vit"), dataset=str(task / "red"), epochs=1))
    run_method(run, method)
    result = run.files.result("race")
    assert (result.validation, result.n_validation) == (0.5, 18) and result.seconds > 100
    assert [path.name for path in (run.folder / "logs").iterdir()] == ["race-on-train-validation.jsonl"]
    assert (run.folder / "adapter-race" / "adapter_config.json").exists() and not (run.folder / "supernet").exists()
    assert method.parts == {"race"}


def test_help_names_every_method_that_is_registered_with_what_it_does():
    code = (
        "import sys; from peft_noah.run.registry import Method, register_method;"
        "register_method(Method('bitfit', 'all biases train', print));"
        "from peft_noah.cli import app; assert 'torch' not in sys.modules; app()"
    )
    for command in ("baseline", "suite"):
        done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
        assert "bitfit (all biases train)" in " ".join(done.stdout.split()), done.stdout + done.stderr


def test_a_method_stands_at_the_end_of_the_table_and_before_transfers(bitfit):
    rows = ["transfer red", "bitfit", "noah retrained", "full"]
    assert sorted(rows, key=table_order) == ["full", "noah retrained", "bitfit", "transfer red"]
    assert bitfit in baselines() and all_methods()[-1] is bitfit


def test_a_row_of_a_transfer_has_a_method_too():
    assert method_of_row("transfer red").keeps == "adapter-transfer-red"
    assert method_of_row("magic") is None and not transfer("red").is_baseline
    assert find_method("noah-retrained").name == "noah retrained"


@pytest.mark.parametrize("name", ["lora", "LoRA", "transfer x", "", "best-single", "two  spaces"])
def test_a_name_that_is_taken_or_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match="registered already|needs a name"):
        register_method(Method(name, "", print))


def test_a_method_that_makes_no_model_is_refused():
    with pytest.raises(ValueError, match="'x' makes no model"):
        Method("x", "")


def test_lora_on_every_linear_has_about_the_parameters_of_lora_and_keeps_its_adapter(tmp_path):
    make_model().save_pretrained(tmp_path / "vit")
    write_task(tmp_path / "task")
    options = ["--model", tmp_path / "vit", "--dataset", tmp_path / "task", "--epochs", "1", "--strategy", "race"]
    done = invoke("run", *options, "--baselines", "lora,lora-all", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    report = RunReport.load(tmp_path / "run" / "results.json")
    parameters = {result.method: result.parameters for result in report.results}
    assert parameters["lora all"] == 4 * 2 * (4 * (24 + 24) + 2 * (24 + 48))
    assert 0.8 < parameters["lora all"] / parameters["lora"] < 1.2
    config = json.loads((tmp_path / "run" / "adapter-lora-all" / "adapter_config.json").read_text())
    assert any(name.endswith("fc1") for name in config["target_modules"])
