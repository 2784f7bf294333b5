"""The run folder and the command line, on a tiny ViT and a tiny dataset written by the test."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import FAMILIES, SIZES, make_model
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_runs import SMALL, invoke, refused, write_task
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
)

from peft_noah import Architecture
from peft_noah.results.report import RunReport
from peft_noah.run.best import find_best
from peft_noah.run.context import RunContext
from peft_noah.run.folder import Busy
from peft_noah.run.methods import SUPERNET
from peft_noah.run.searches import search
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import do_stages, run_everything, run_method
from peft_noah.searching.evolution import SearchResult
from peft_noah.searching.scoring import Scorer
from peft_noah.training.tracking import StepLog

STAGES = ("settings.json", "supernet", "search.json", "adapter-inherited", "adapter", "results.json", "results.md")
ADAPTERS = [f"adapter{how}/adapter_model.safetensors" for how in ("", "-inherited", "-continued")]


@pytest.fixture(scope="module")
def finished(task, backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = invoke("run", "--strategy", "noah", "--model", backbone, "--dataset", task, *SMALL, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_leaves_all_its_files(finished):
    assert [name for name in STAGES if not (finished / name).exists()] == []
    assert {path.name for path in (finished / "figures").iterdir()} == {"architecture.png", "search.png"}
    kept = {"lora", "adapter", "vpt", "inherited", "continued"}
    assert {path.name for path in finished.glob("adapter*")} == {"adapter", *(f"adapter-{how}" for how in kept)}
    assert all((path / "README.md").exists() for path in finished.glob("adapter*"))
    assert not list(finished.rglob("*.partial")) and not list(finished.rglob("*.bin"))
    assert not (finished / "checkpoints").exists()
    lines = [json.loads(line) for line in (finished / "logs" / "supernet.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [("supernet", 1)]


def test_one_log_holds_every_step_of_every_training(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert {"supernet", "lora, on train", "noah retrained, on train + validation"} <= {line["stage"] for line in lines}
    assert all(line.keys() == {"stage", "step", "loss", "rate", "seconds"} for line in lines)


def test_a_run_ends_with_the_adapter_to_use(finished, task, backbone):
    best = find_best(finished)
    assert {path.name for path in (finished / "best").iterdir()} == {
        path.name for path in (finished / best.source).iterdir()
    }
    for path in (finished / "best").iterdir():
        assert path.read_bytes() == (finished / best.source / path.name).read_bytes(), path
    result = invoke("run", "--strategy", "noah", "--model", backbone, "--dataset", task, *SMALL, "--output", finished)
    assert result.output.rstrip().endswith(best.sentence())
    single = PeftModel.from_pretrained(
        AutoModelForImageClassification.from_pretrained(backbone, num_labels=3, ignore_mismatched_sizes=True),
        finished / "adapter-lora",
    )
    assert single.get_architecture() == Architecture.uniform(4, lora=8)


def test_the_table_has_one_row_per_method(finished):
    report = RunReport.load(finished / "results.json")
    methods = ["linear", "vpt", "adapter", "lora", "noah inherited", "noah retrained", "noah continued"]
    assert [result.method for result in report.results] == methods  # the paper's order
    by_name = {result.method: result for result in report.results}
    assert by_name["linear"].parameters == 0 and by_name["linear"].head_parameters == 24 * 3 + 3
    assert by_name["lora"].parameters == 4 * 4 * 24 * 8
    assert all(result.n_test == 9 and result.n_validation == 6 for result in report.results)
    assert "noah retrained" in (finished / "results.md").read_text()


def test_the_adapter_is_the_best_architecture_within_the_budget(finished):
    result = SearchResult.load(finished / "search.json")
    config = json.loads((finished / "adapter" / "adapter_config.json").read_text())
    assert Architecture(config["architecture"]) == result.best.architecture
    assert all(candidate.parameters <= result.budget for candidate in result.candidates)
    assert len(result.candidates) == 8


def test_the_saved_adapter_loads_as_its_card_says(finished, backbone):
    card = (finished / "adapter" / "README.md").read_text()
    assert card.index("import peft_noah") < card.index("## Architecture")
    model = AutoModelForImageClassification.from_pretrained(backbone, num_labels=3, ignore_mismatched_sizes=True)
    loaded = PeftModel.from_pretrained(model, finished / "adapter")
    assert loaded(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape == (1, 3)


def test_a_fresh_process_reproduces_the_logits_bit_for_bit(finished, backbone, tmp_path):
    code = """
import sys, torch, peft_noah
from peft import PeftModel
from safetensors.torch import load_file
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification
vit = AutoModelForImageClassification.from_pretrained(sys.argv[1], num_labels=3, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(vit, sys.argv[2]).eval()
pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    save_file({"logits": model(pixel_values=pixels).logits}, sys.argv[3])
"""
    command = [sys.executable, "-c", code, backbone, finished / "adapter", tmp_path / "logits.safetensors"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    fresh = AutoModelForImageClassification.from_pretrained(backbone, num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(fresh, finished / "adapter").eval()
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], expected)


def test_full_fine_tuning_is_a_baseline_too(finished):
    assert invoke("baseline", finished, "--method", "full").exit_code == 0
    full = RunReport.load(finished / "results.json").results[0]
    assert full.method == "full" and full.parameters == sum(
        p.numel() for name, p in make_model().named_parameters() if "classifier" not in name
    )


def test_evaluate_repeats_the_tables_accuracy(finished, task, backbone):
    result = invoke("evaluate", finished / "adapter", "--model", backbone, "--dataset", task)
    assert result.exit_code == 0, result.output
    shown = float(re.match(r"([\d.]+) %", result.output)[1])
    expected = next(r for r in RunReport.load(finished / "results.json").results if r.method == "noah retrained").test
    assert shown == pytest.approx(100 * expected, abs=0.005)


def test_a_finished_run_is_not_trained_again(finished, task, backbone):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = invoke("run", "--strategy", "noah", "--model", backbone, "--dataset", task, *SMALL, "--output", finished)
    assert result.exit_code == 0, result.output
    assert "noah retrained: its result is there already, and is kept" in " ".join(result.output.split())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_stages_one_by_one_give_the_same_adapter(finished, task, backbone, tmp_path):
    folder = tmp_path / "run"
    for arguments in (
        ("supernet", "--model", backbone, "--dataset", task, *SMALL, "--output", folder),
        ("search", folder),
        ("subnet", folder),
        ("subnet", folder, "--inherit"),
        ("baseline", folder, "--method", "linear"),
        ("plot", folder),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    for name in ("search.json", *ADAPTERS):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_an_interrupted_run_goes_on_after_its_last_finished_stage(finished, task, backbone, tmp_path):
    folder = tmp_path / "run"
    settings = RunSettings.load(finished / "settings.json")
    do_stages(RunContext(folder, settings), SUPERNET)
    (folder / "adapter.partial").mkdir()
    stamp = (folder / "supernet" / "adapter_model.safetensors").stat().st_mtime_ns
    run_everything(RunContext(folder, settings))
    assert (folder / "supernet" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_job_killed_between_its_adapter_and_its_result_goes_on(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "results" / "noah-retrained.json").unlink()
    assert invoke("subnet", folder).exit_code == 0
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_last_step_ends_the_command_with_its_code_and_says_how_to_go_on(
    number, code, task, backbone, monkeypatch, tmp_path
):
    monkeypatch.setattr(StepLog, "__call__", lambda *args: signal.raise_signal(number))
    result = invoke("supernet", "--model", backbone, "--dataset", task, *SMALL, "--output", tmp_path / "run")
    assert result.exit_code == code and "Type the same command again" in result.output
    assert list((tmp_path / "run" / "checkpoints" / "supernet").glob("00000001-*.safetensors"))


def test_an_interrupted_search_scores_nothing_twice(finished, task, backbone, tmp_path, monkeypatch):
    folder, look, looked_at = tmp_path / "run", Scorer.outcome, set()
    do_stages(RunContext(folder, RunSettings.load(finished / "settings.json")), SUPERNET)

    def failing(scorer, architecture, *args):
        looked_at.add(architecture)
        if len(looked_at) > 6:  # in the second generation of four
            raise KeyboardInterrupt
        return look(scorer, architecture, *args)

    monkeypatch.setattr(Scorer, "outcome", failing)
    with pytest.raises(KeyboardInterrupt):
        search(RunContext(folder))
    again = set()

    def noting(scorer, architecture, *args):
        again.update({architecture} - scorer.known.keys())
        return look(scorer, architecture, *args)

    monkeypatch.setattr(Scorer, "outcome", noting)
    search(RunContext(folder))
    assert len(again) == 4
    assert (folder / "search.json").read_bytes() == (finished / "search.json").read_bytes()
    assert not (folder / "search.partial.json").exists()


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/supernet", "logs", "logs/supernet.jsonl"])
def test_nothing_is_written_or_removed_through_a_link(name, finished, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    (outside / "supernet").mkdir(parents=True)
    (outside / "supernet" / "precious.txt").touch()
    folder.mkdir()
    shutil.copy(finished / "settings.json", folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match="is a link, and nothing is written through one"):
        do_stages(RunContext(folder), SUPERNET)
    assert [path.relative_to(outside).as_posix() for path in outside.rglob("*.*")] == ["supernet/precious.txt"]


def test_an_adapter_is_scored_on_the_validation_images_of_its_run(backbone, tmp_path, caplog):
    task = write_task(tmp_path / "task", validation=0)
    common = ("--model", backbone, "--dataset", task)
    assert invoke("supernet", *common, *SMALL, "--seed", 3, "--output", tmp_path / "run").exit_code == 0
    assert invoke("search", tmp_path / "run").exit_code == 0
    noted = RunReport.load(tmp_path / "run" / "results.json").results[0].validation
    result = invoke("evaluate", tmp_path / "run" / "adapter-inherited", *common, "--split", "validation")
    assert f"{100 * noted:.2f} %" in result.output and "seed 3" in caplog.text and "seed 0" not in caplog.text
    other = ("--model", backbone, "--dataset", write_task(tmp_path / "other", validation=0))
    result = invoke("evaluate", tmp_path / "run" / "adapter-inherited", *other, "--split", "validation")
    assert result.exit_code == 0 and "other: no validation split; 3 of 12" in caplog.text and "seed 0" in caplog.text


def test_a_mean_is_over_runs_that_differ_in_their_seed_only(finished, tmp_path):
    report = RunReport.load(finished / "results.json")
    for name, changes in {
        "seed": {},
        "epochs": {"settings": {**report.settings, "epochs": 7}},
        "images": {"task": {**report.task, "fingerprint": "0"}, "settings": {**report.settings, "dataset": "other"}},
    }.items():
        results = [dataclasses.replace(result, seed=1) for result in report.results]
        dataclasses.replace(report, results=results, **changes).save(tmp_path / name)
    result = invoke("table", finished, tmp_path / "seed", "--markdown")
    assert result.exit_code == 0 and "2 seeds" in result.output
    for name in ("epochs", "images"):
        result = invoke("table", finished, tmp_path / name, "--markdown")
        assert result.exit_code == 2 and f"these runs differ in {name}" in result.output


def test_the_table_over_seeds_shows_means_with_errors(finished):
    result = invoke("table", finished, finished, "--markdown")
    assert result.exit_code == 2  # the same seed twice is no second measurement
    assert invoke("table", finished, "--markdown").exit_code == 0


def test_a_published_architecture_needs_the_right_number_of_blocks(task, backbone, tmp_path):
    folder = tmp_path / "run"
    RunContext(folder, RunSettings(model=str(backbone), dataset=str(task), epochs=1)).prepare()
    result = invoke("subnet", folder, "--architecture", "vtab/cifar100")
    assert result.exit_code == 2 and "has 12 dims but this model has 4 blocks" in result.output


@pytest.mark.parametrize("command", ["run", "supernet", "search", "subnet", "baseline", "evaluate", "plot", "table"])
def test_help_ends_with_an_example(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert (
        result.output.rstrip().splitlines()[-1].strip().startswith("Example: peft-noah")
        or "Example: peft-noah" in (result.output[-200:])
    )


def test_a_deit_with_its_distilled_head_runs_and_keeps_both_heads(task, tmp_path):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES)).save_pretrained(tmp_path / "deit")
    folder = tmp_path / "run"
    result = invoke(
        "run", "--strategy", "noah", "--model", tmp_path / "deit", "--dataset", task, *SMALL, "--output", folder
    )
    assert result.exit_code == 0, result.output
    heads = {name.split(".")[2] for name in load_file(folder / ADAPTERS[0]) if "classifier" in name}
    assert heads == {"cls_classifier", "distillation_classifier"}
    report = RunReport.load(folder)
    assert {result.head_parameters for result in report.results} == {2 * (24 * 3 + 3)}
    evaluated = invoke("evaluate", folder / "adapter", "--model", tmp_path / "deit", "--dataset", task)
    assert evaluated.exit_code == 0, evaluated.output


def test_a_run_without_test_images_goes_on_and_says_so(backbone, tmp_path):
    task = write_task(tmp_path / "task", test=0, validation=0)
    folder, common = tmp_path / "run", ("--model", backbone, "--dataset", task)
    assert invoke("supernet", *common, "--epochs", 1, "--supernet-epochs", 1, "--output", folder).exit_code == 0
    result = invoke("baseline", folder, "--method", "linear")
    assert result.exit_code == 0, result.output
    report = RunReport.load(folder)
    assert report.results[0].test is None and report.results[0].n_test == 0
    assert report.task["sizes"] == {"train": 9, "validation": 3, "test": 0}
    assert report.task["images"]["train"] == {"images": 9, "classes": 3, "fewest per class": 3, "most per class": 3}
    assert report.notes == [
        "no validation split; 3 of 12 training images were split off, class by class, with seed 0.",
        "there are no labelled test images, so there is no test accuracy.",
    ]
    assert "there are no labelled test images, so it was not measured" in (folder / "results.md").read_text()
    result = invoke("evaluate", folder / "supernet", *common)
    assert result.exit_code == 2 and "no labelled images in the test split" in " ".join(result.output.split())


def test_splits_and_config_are_options_that_a_run_keeps(backbone, tmp_path):
    task, folder = tmp_path / "task", tmp_path / "run"
    task.mkdir()
    for config in ("a", "b"):
        write_task(task / config)
        (task / config / "test.parquet").rename(task / config / "held_out.parquet")
    common = ("supernet", "--model", backbone, "--dataset", task, "--epochs", 1, "--supernet-epochs", 1)
    refused(*common, folder=folder, message="holds several configs: it has a, b")
    chosen = ("--dataset-config", "b", "--train-split", "held_out", "--validation-split", "train", "--test-split")
    result = invoke(*common, *chosen, "validation", "--output", folder)
    assert result.exit_code == 0, result.output
    settings = RunSettings.load(folder / "settings.json")
    assert (settings.dataset_config, settings.train_split, settings.test_split) == ("b", "held_out", "validation")
    assert RunContext(folder).splits.to_dict()["sizes"] == {"train": 9, "validation": 12, "test": 6}
    refused(*common, *chosen, "train", folder=tmp_path / "other", message="not three different ones")


def test_an_output_folder_that_holds_another_run_is_left_alone(finished, task, backbone):
    before = sorted(finished.rglob("*"))
    result = invoke(
        "run",
        "--strategy",
        "noah",
        "--model",
        backbone,
        "--dataset",
        task,
        *SMALL,
        "--seed",
        "1",
        "--output",
        finished,
    )
    assert result.exit_code == 2 and "holds another run, with other seed" in " ".join(result.output.split())
    assert sorted(finished.rglob("*")) == before


def test_a_supernet_cut_short_is_named(finished, task, backbone, tmp_path):
    folder = tmp_path / "run"
    do_stages(RunContext(folder, RunSettings.load(finished / "settings.json")), SUPERNET)
    weights = folder / "supernet" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = invoke("search", folder)
    assert result.exit_code == 2 and "cut short or damaged" in " ".join(result.output.split())
    assert not (folder / "search.json").exists()


def test_an_adapter_of_another_model_names_both_sizes(finished, task, tmp_path):
    small = FAMILIES["vit"]().config
    small.num_hidden_layers = 2
    type(make_model())(small).save_pretrained(tmp_path / "small")
    result = invoke("evaluate", finished / "adapter", "--model", tmp_path / "small", "--dataset", task)
    assert result.exit_code == 2
    assert re.search("4.*blocks.*2|num_blocks 4.*2|4 dims.*2 blocks", " ".join(result.output.split())), result.output


def test_an_architecture_file_that_is_none_is_refused(finished, tmp_path):
    (tmp_path / "a.json").write_text('{"lora": [1, 2')
    result = invoke("subnet", finished, "--architecture", tmp_path / "a.json")
    assert result.exit_code == 2 and "a.json" in "".join(result.output.split())


# ---------------------------------------------------------------------- controls and transfers


@pytest.fixture(scope="module")
def compared(finished, task, backbone, tmp_path_factory):
    """A run of NOAH and its controls, method by method."""
    job = RunContext(tmp_path_factory.mktemp("runs") / "run", RunSettings.load(finished / "settings.json"))
    for method in ("noah continued", "noah retrained", "random search", "best single", "noah inherited"):
        run_method(job, method)
    return job


def test_methods_give_what_the_whole_job_gives(compared, finished):
    for name in ("search.json", *ADAPTERS):
        assert (compared.folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_random_search_scores_as_many_candidates_in_the_same_supernet(compared):
    found = SearchResult.load(compared.folder / "random-search.json")
    assert len(found.candidates) == len(SearchResult.load(compared.folder / "search.json").candidates)
    assert {candidate.origin for candidate in found.candidates} == {"random"}
    report = RunReport.load(compared.files.result_path("random search"))
    assert Architecture(report.architecture) == found.best.architecture
    assert report.results[0].parameters == found.best.parameters


def test_the_best_single_module_is_chosen_on_validation_at_the_cost_of_all(compared):
    singles = [compared.files.result(method) for method in ("lora", "adapter", "vpt")]
    best = compared.files.result("best single")
    assert best.validation == max(single.validation for single in singles)
    assert best.seconds == pytest.approx(sum(single.seconds for single in singles))
    chosen = max(singles, key=lambda single: (single.validation, -single.parameters))
    assert best.test == chosen.test and f"best single: {chosen.method}" in (compared.folder / "results.md").read_text()


def test_retraining_costs_supernet_and_search_too(compared):
    retrained, inherited = (compared.files.result(f"noah {how}") for how in ("retrained", "inherited"))
    assert re.search(
        r"peak memory .*: supernet \d\.\d GB, search \d\.\d GB", (compared.folder / "results.md").read_text()
    )
    stages = compared.files.seconds("supernet") + compared.files.seconds("search")
    assert retrained.seconds > stages and inherited.seconds > stages


def test_continuing_starts_from_the_inherited_weights(compared, tmp_path, monkeypatch):
    shutil.copytree(compared.folder, tmp_path / "run")
    job = RunContext(tmp_path / "run")
    job.files.forget("noah continued")
    started = []

    def no_training(name, model, images, stage):
        started.append((name, len(images), get_peft_model_state_dict(model)))
        return SimpleNamespace(seconds=1.0)

    monkeypatch.setattr(job, "train", no_training)
    run_method(job, "noah continued")
    inherited = load_file(compared.folder / "adapter-inherited" / "adapter_model.safetensors")
    assert [(name, images) for name, images, _ in started] == [
        ("noah continued, on train", 12),
        ("noah continued, on train + validation", 18),
    ]
    for *_, weights in started:
        assert weights.keys() == inherited.keys() and all(torch.equal(weights[k], inherited[k]) for k in weights)
    card = (tmp_path / "run" / "adapter-continued" / "README.md").read_text()
    assert "inherited from the supernet and trained on" in card


def test_inheriting_and_an_architecture_from_elsewhere_exclude_each_other(finished):
    result = invoke("subnet", finished, "--inherit", "--architecture", "vtab/cifar100")
    assert result.exit_code == 2 and "leave --architecture out" in " ".join(result.output.split())


def test_a_finished_method_is_not_run_again(compared, monkeypatch):
    monkeypatch.setattr(compared, "train", None)
    for method in ("noah retrained", "random search", "best single", "lora"):
        run_method(compared, method)
    with pytest.raises(ValueError, match="method 'magic' is not known"):
        run_method(compared, "magic")


def test_an_architecture_from_elsewhere_is_a_row_of_its_own(compared, finished, tmp_path):
    Architecture.uniform(4, lora=2).save(tmp_path / "hand.json")
    before = (compared.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    result = invoke("subnet", compared.folder, "--architecture", tmp_path / "hand.json")
    assert result.exit_code == 0, result.output
    assert compared.files.result("transfer hand").parameters == 4 * 4 * 24 * 2
    assert (compared.folder / "adapter" / "adapter_model.safetensors").read_bytes() == before
    card = (compared.folder / "adapter-transfer-hand" / "README.md").read_text()
    assert card.index("import peft_noah") < card.index("## Architecture")


def test_another_architecture_of_the_same_name_is_refused(compared, tmp_path):
    Architecture.uniform(4, lora=2).save(tmp_path / "twice.json")
    assert invoke("subnet", compared.folder, "--architecture", tmp_path / "twice.json").exit_code == 0
    Architecture.uniform(4, lora=3).save(tmp_path / "twice.json")
    result = invoke("subnet", compared.folder, "--architecture", tmp_path / "twice.json")
    assert result.exit_code == 2 and "holds another architecture already" in result.output


def test_another_process_that_holds_the_supernet_is_not_waited_for(finished, task, backbone, tmp_path):
    job = RunContext(tmp_path / "run", RunSettings.load(finished / "settings.json"))
    with job.files.lock("supernet-and-search"), pytest.raises(Busy):
        run_method(job, "noah inherited")
    assert not (job.folder / "supernet").exists()


@pytest.mark.parametrize(
    ("command", "lock"),
    [("supernet", "supernet-and-search"), ("run", "supernet-and-search"), ("baseline", "lora")],
)
def test_a_second_command_on_what_another_is_at_work_on_says_so(command, lock, task, backbone, tmp_path):
    settings = {"model": str(backbone), "dataset": str(task), "strategy": "noah", "epochs": 1, "supernet_epochs": 1}
    if command != "run":
        settings["baselines"] = ()
    job = RunContext(tmp_path / "run", RunSettings(**settings))
    job.prepare()
    arguments = ("--model", backbone, "--dataset", task, "--epochs", 1, "--supernet-epochs", 1)
    if command == "baseline":
        arguments = (job.folder, "--method", "lora")
    else:
        arguments += ("--output", job.folder, *(("--strategy", "noah") if command == "run" else ()))
    with job.files.lock(lock):
        result = invoke(command, *arguments)
    assert result.exit_code == 2, result.output
    assert f"another process is at work on {lock!r}" in " ".join(result.output.split())
    assert not (job.folder / "checkpoints").exists() and not (job.folder / "supernet").exists()


# ---------------------------------------------------------------------- few-shot and domain generalisation


def test_a_run_takes_few_shots_and_is_tested_on_further_sets(task, backbone, tmp_path):
    far = write_task(tmp_path / "far", test=9)
    arguments = ("--model", backbone, "--dataset", task, *SMALL, "--shots", "2", "--other-test", f"far={far}")
    result = invoke("run", "--strategy", "noah", *arguments, "--baselines", "lora", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    report = RunReport.load(tmp_path / "run" / "results.json")
    assert report.task["sizes"]["train"] == 3 * 2 and report.task["shots"] == 2
    assert {line.method: set(line.tests) for line in report.results} == {
        method: {"far"} for method in ("lora", "noah inherited", "noah retrained", "noah continued")
    }
    # the further set holds the images of the test set here, so that both accuracies must agree
    assert all(line.tests["far"] == (line.test, 9) for line in report.results)


def test_augmented_training_differs_and_its_seed_fixes_it(task, backbone, tmp_path):
    pytest.importorskip("kornia")
    settings = {"model": str(backbone), "dataset": str(task), "epochs": 1}
    losses = []
    for name, augment in (("plain", False), ("augmented", True), ("again", True)):
        job = RunContext(tmp_path / name, RunSettings(**settings, augment=augment))
        run_method(job, "lora")
        losses.append((job.folder / "logs" / "lora-on-train.jsonl").read_text().split('"loss": ')[1].split(",")[0])
    assert losses[0] != losses[1] == losses[2]
