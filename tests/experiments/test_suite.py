"""A suite: every cell once, whoever runs it, whatever breaks."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time

import pytest
from clusters import Here, assert_same_runs
from conftest import make_model
from tiny_runs import invoke, write_task

from peft_noah import Architecture
from peft_noah.experiments.plan import Plan
from peft_noah.experiments.spread import _Spread, run_spread
from peft_noah.experiments.suite import SPREAD, Suite
from peft_noah.experiments.tasks import Task
from peft_noah.results.report import RunReport
from peft_noah.run.cluster import Cluster
from peft_noah.run.folder import Busy, RunFolder
from peft_noah.run.methods import RACE
from peft_noah.run.models import add_design, count_trainable
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.race import Race, RaceSettings, Rung
from peft_noah.searching.result import SearchResult

SHORT = ["--epochs", "1", "--seeds", "0"]
SMALL = [*SHORT, "--supernet-epochs", "1", "--population-size", "4", "--generations", "1"]
METHODS = ["linear", "lora", "noah retrained", "transfer blue", "transfer red"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("blue", "red"):
        write_task(folder / name, train=6, validation=6, test=6)
    (folder / "tasks.json").write_text('{"red": "warm", "blue": "cold"}')
    return folder


@pytest.fixture(scope="module")
def arguments(root, tmp_path_factory):
    backbone = tmp_path_factory.mktemp("models") / "vit"
    make_model().save_pretrained(backbone)
    return [root, "--model", backbone, *SMALL, "--methods", "linear,lora,noah-retrained", "--transfer"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites") / "suite"
    result = invoke("suite", *arguments, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("results/*.json")}


def test_every_cell_is_one_file_that_says_what_made_it(finished):
    assert len(stamps(finished)) == 8
    report = RunReport.load(finished / "red" / "seed0" / "results" / "lora.json")
    assert [result.method for result in report.results] == ["lora"]
    assert (report.task["name"], report.task["group"], report.task["shots"]) == ("red", "warm", None)
    assert report.settings["epochs"] == 1 and report.versions["torch"] and report.preprocessing["mean"]


def test_a_transfer_retrains_what_the_other_task_found(finished):
    report = RunReport.load(finished / "red" / "seed0" / "results" / "transfer-blue.json")
    found = SearchResult.load(finished / "blue" / "seed0" / "search.json").best.architecture
    assert Architecture(report.architecture) == found


def test_a_finished_cell_is_never_run_twice(finished, arguments):
    before = stamps(finished)
    result = invoke("suite", *arguments, "--output", finished)
    assert result.exit_code == 0 and "8 of 8 cells done" in result.output
    assert stamps(finished) == before


def test_progress_shows_what_is_done(finished):
    result = invoke("progress", finished)
    assert result.exit_code == 0 and "8 of 8 cells done" in result.output
    assert re.search(r"red +4 +0 +0", result.output), result.output


def test_a_dry_run_lists_all_cells_and_writes_nothing(arguments, tmp_path):
    result = invoke("suite", *arguments, "--output", tmp_path / "suite", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "8 cells" in result.output and not (tmp_path / "suite").exists()
    for method, parameters in (("linear", "0"), ("lora", f"{4 * 4 * 24 * 8:,}"), ("noah retrained", "at most")):
        assert re.search(rf"red +{method} +0 +{parameters}", result.output), (method, result.output)


def test_a_dry_run_says_how_large_the_winner_of_a_race_may_be(arguments, tmp_path):
    sizes = {count_trainable(add_design(make_model(), design, "paper"))[0] for design in PORTFOLIO}
    smaller = sorted(sizes)[0]
    for options, largest in (((), max(sizes)), (("--budget", smaller), smaller)):
        job = [*arguments[:3], *SHORT, "--methods", "race", *options, "--output", tmp_path / "suite", "--dry-run"]
        result = invoke("suite", *job)
        assert re.search(rf"red +race +0 +at most {largest:,} ", result.output), result.output


def test_a_dry_run_counts_the_search_that_a_transfer_does_where_no_method_does_it(arguments, tmp_path):
    def costs(*methods):
        job = [*arguments[:-3], "--methods", *methods, "--transfer", "--output", tmp_path / "suite", "--dry-run"]
        found = re.findall(r"transfer \w+ +0 +at most [\d,]+ +([\d.]+)", invoke("suite", *job).output)
        return [float(cost) for cost in found]

    with_search, without = costs("none"), costs("noah-retrained")
    # the supernet sees 6 images in its epoch, and the search 6 for each of its 4 candidates: 2 x 6 + 4 x 6 over 2 x 6
    assert len(without) == 2 and [more - less for more, less in zip(with_search, without, strict=True)] == [3.0, 3.0]


def test_another_method_joins_a_finished_suite(arguments, tmp_path, root):
    first = [*arguments[:3], *SHORT, "--methods", "linear", "--tasks", "red"]
    assert invoke("suite", *first, "--output", tmp_path / "suite").exit_code == 0
    before = stamps(tmp_path / "suite")
    more = [*arguments[:3], *SHORT, "--methods", "lora", "--tasks", "red"]
    assert invoke("suite", *more, "--output", tmp_path / "suite").exit_code == 0
    after = stamps(tmp_path / "suite")
    assert len(after) == 2 and before.items() <= after.items()
    assert Plan.load(tmp_path / "suite").methods == ("linear", "lora")


def test_a_broken_cell_is_reported_and_retried_on_request(arguments, tmp_path, root):
    folder = tmp_path / "suite"
    broken = root / "red" / "train.parquet"
    good = broken.read_bytes()
    command = [*arguments[:3], *SHORT, "--methods", "linear", "--output", folder]
    try:
        # images are decoded when the cell runs, so only its own task breaks
        broken.write_bytes(good.replace(b"IHDR", b"XXXX"))
        result = invoke("suite", *command)
    finally:
        broken.write_bytes(good)
    assert result.exit_code == 1 and "1 of 2 cells done, 1 failed" in result.output
    assert "image 0 of split 'train'" in " ".join(result.output.split())
    assert "Traceback" in json.loads((folder / "red/seed0/results/linear.error.json").read_text())["traceback"]
    assert invoke("suite", *command).exit_code == 1  # not tried again unless asked
    result = invoke("suite", *command, "--retry")
    assert result.exit_code == 0 and "2 of 2 cells done" in result.output, result.output
    assert not list(folder.rglob("*.error.json"))


def test_a_result_cut_short_is_named_and_run_again_on_request(arguments, tmp_path):
    command = [*arguments[:3], *SHORT, "--methods", "linear", "--tasks", "red", "--output", tmp_path / "suite"]
    assert invoke("suite", *command).exit_code == 0
    path = tmp_path / "suite" / "red" / "seed0" / "results" / "linear.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    result = invoke("suite", *command)
    assert result.exit_code == 1 and "linear.json is not valid JSON" in " ".join(result.output.split())
    assert invoke("tables", tmp_path / "suite").exit_code == 2
    assert invoke("suite", *command, "--retry").exit_code == 0
    assert RunReport.load(path).results[0].test == json.loads(whole)["results"][0]["test"]


def test_a_transfer_from_a_failed_search_fails_with_its_reason(root, arguments, tmp_path):
    tasks = tuple(Task(name, str(root / name)) for name in ("blue", "red"))
    plan = Suite(tmp_path / "none", _plan(arguments, tasks)).plan
    suite = Suite(tmp_path / "suite", plan)
    for cell in suite.cells:
        if cell.task == "blue" and cell.method == "noah inherited":
            suite.files(cell).add_error("noah inherited", ValueError("no luck"))
    progress = suite.run()
    errors = {str(cell): error for cell, error in progress.errors}
    assert "the search on blue failed: ValueError: no luck" in errors["red, transfer blue, seed 0"]
    assert progress.count("done") == 2, errors  # red's own search, and blue with red's architecture


def test_a_transfer_without_a_method_that_searches_does_the_search_and_never_waits(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "suite")
    for path in (*folder.rglob("results"), *folder.rglob("adapter*")):
        shutil.rmtree(path, ignore_errors=True)
    (folder / "red/seed0/search.json").unlink()
    (folder / "suite.json").unlink()
    dataclasses.replace(Plan.load(finished), methods=()).save(folder)
    assert Suite(folder).run().count("done") == 2
    for name in ("red/seed0/search.json", "blue/seed0/adapter-transfer-red/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize("spread", [False, True])
def test_a_transfer_fails_with_any_method_that_failed_with_the_search(finished, tmp_path, spread):
    folder = shutil.copytree(finished, tmp_path / "suite")
    (folder / "red/seed0/search.json").unlink()
    (folder / "blue/seed0/results/transfer-red.json").unlink()
    (folder / "red/seed0/results/noah-retrained.json").unlink()
    RunFolder(folder / "red/seed0").add_error("noah retrained", ValueError("no luck"))
    progress = run_spread(Suite(folder), Here()) if spread else Suite(folder).run()
    errors = {str(cell): error for cell, error in progress.errors}
    assert "the search on red failed: ValueError: no luck" in errors["blue, transfer red, seed 0"]


def _plan(arguments, tasks):
    run = RunSettings(model=str(arguments[2]), epochs=1, supernet_epochs=1, population_size=4, generations=1)
    return Plan(tasks, ("noah inherited",), (0,), run, transfer=True)


def test_two_processes_share_a_suite_and_no_cell_is_run_twice(arguments, finished, python, tmp_path):
    folder = tmp_path / "suite"
    processes = [python.start("-m", "peft_noah", "suite", *arguments, "--output", folder) for _ in range(2)]
    ended = [process.wait() for process in processes]
    assert [process.returncode for process in ended] == [0, 0], ended
    said = "\n".join(process.stdout + process.stderr for process in ended)
    ran = re.findall(r"^(\w+, [\w ]+, seed 0): test", said, re.M)
    assert len(ran) == len(set(ran)) == 8
    for name in ("red/seed0/search.json", "blue/seed0/adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_killed_process_leaves_its_cell_to_the_next(arguments, finished, python, tmp_path):
    folder = tmp_path / "suite"
    process = python.start("-m", "peft_noah", "suite", *arguments, "--output", folder)
    deadline = time.monotonic() + 120
    while not list(folder.rglob("supernet/adapter_model.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert invoke("suite", *arguments, "--output", folder).exit_code == 0
    for name in ("red/seed0/search.json", "blue/seed0/adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "lora,magic"], "method 'magic' is not known"),
        (["--seeds", "a"], "seeds must be whole numbers"),
        (["--tasks", "green"], "no task is named 'green'; there are red, blue"),
        (["--architecture", "vtab/none"], "no published architecture"),
        (["--epochs", "-1"], "epochs is -1; give a whole number"),
        (["--tasks", "red"], "--transfer has no effect on a suite of one task"),
        (["--shots", "3,4"], "--shots 3,4 has no effect: no task in .* is of few-shot sets. Leave it out"),
        (["--methods", "race,lora"], "--supernet-epochs has no effect on --methods race,lora: leave it out, or add a"),
        (["--design", "DESIGN", "--methods", "lora,noah-retrained"], "--design has no effect on --methods lora,noah"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(arguments, more, message, tmp_path):
    Design("mine", {"lora": 1}).save(tmp_path / "mine.json")
    arguments = arguments[:-1] if "--methods" in more else arguments  # a transfer searches
    more = [tmp_path / "mine.json" if word == "DESIGN" else word for word in more]
    result = invoke("suite", *arguments, *more, "--output", tmp_path / "suite")
    assert result.exit_code == 2 and re.search(message, " ".join(result.output.split())), result.output
    assert not (tmp_path / "suite").exists()


@pytest.mark.parametrize(
    "options", [("--search-space", "wide"), ("--search-space", "own.json"), ("--modules", "lora")]
)
def test_an_option_of_the_search_is_refused_by_a_suite_that_does_not_search(arguments, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text('{"dims": {"lora": [1, 2]}}')
    suite = ("suite", *arguments[:3], *SHORT, *options, "--methods")
    result = invoke(*suite, "race,lora", "--output", tmp_path / "suite")
    said = f"{options[0]} has no effect on --methods race,lora: leave it out, or add a method of noah to --methods"
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert not (tmp_path / "suite").exists()
    for searches in (["lora,random-search"], ["none", "--transfer"]):
        result = invoke(*suite, *searches, "--dry-run", "--output", tmp_path / "suite")
        assert result.exit_code == 0, result.output


def test_other_settings_need_another_folder(arguments, finished):
    result = invoke("suite", *arguments, "--epochs", "2", "--output", finished)
    assert result.exit_code == 2 and "started with other epochs" in " ".join(result.output.split())


def test_a_folder_that_is_no_suite_is_left_alone(arguments, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert invoke("suite", *arguments, "--output", tmp_path).exit_code == 2
    assert invoke("progress", tmp_path).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# ---------------------------------------------------------------------- on a cluster


def test_pieces_done_elsewhere_in_another_order_leave_the_same_files(finished, tmp_path):
    folder = tmp_path / "suite"
    plan = dataclasses.replace(Plan.load(finished), methods=("noah retrained",))
    assert run_spread(Suite(folder, plan), Here()).count("done") == 4
    kept = {"supernet", "search.json", "adapter", "figures", "results", "results.md", "log.jsonl", "best", "logs"}
    assert kept <= {path.name for path in (folder / "red" / "seed0").iterdir()}
    for task in ("red", "blue"):  # best/ and the table are of all methods of a run
        shutil.rmtree(folder / task / "seed0" / "best")
        assert_same_runs(folder / task, finished / task)


def test_a_race_that_is_only_begun_is_a_piece_of_its_own_on_a_cluster_as_one_that_is_not(tmp_path):
    plan = Plan((Task("red", "data/red"),), ("race",), (0,), RunSettings(epochs=6))
    suite = Suite(tmp_path, plan)
    folder = suite.files(suite.cells[0]).path
    folder.mkdir(parents=True)
    race = Race([Design("one", {"lora": 1}), Design("two", {"lora": 2})], RaceSettings(rungs=(Rung(2, 0.5),)))
    for done in (False, True):
        for heat in race.ask()[: None if done else 1]:
            race.tell(heat, [0.5, 0.5])
        race.save(folder / "race.json")
        assert RACE.is_done(folder) == done
        assert list(_Spread(suite).pieces) == [*([] if done else ["red/seed0, race stage"]), "red, race, seed 0"]
    (folder / "race.json").write_text("{")  # the piece that goes on with it says what is wrong
    assert not RACE.is_done(folder)


def test_what_needs_a_broken_stage_breaks_with_its_reason_and_the_rest_goes_on(root, arguments, tmp_path):
    plan = _plan(arguments, tuple(Task(name, str(root / name)) for name in ("blue", "red")))
    broken = root / "red" / "train.parquet"
    good = broken.read_bytes()
    try:
        broken.write_bytes(good.replace(b"IHDR", b"XXXX"))
        progress = run_spread(Suite(tmp_path / "suite", plan), Here())
    finally:
        broken.write_bytes(good)
    errors = {str(cell): error for cell, error in progress.errors}
    assert progress.count("done") == 1 and len(errors) == 3
    assert errors["red, noah inherited, seed 0"].startswith("ValueError: image 0 of split 'train'")
    assert "the search on red failed: ValueError" in errors["blue, transfer red, seed 0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ray", "auto"], "pip install 'peft-noah[ray]'"),
        (["--ray", "auto", "--gpus-per-cell", "2"], "gpus_per_cell is 2"),
        (["--ray", "here"], "is auto, local or HOST:PORT of its head, got 'here'"),
        (["--cpus-per-cell", "2"], "--cpus-per-cell belongs to --ray"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_and_nothing_is_written(arguments, more, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    result = invoke("suite", *arguments, *more, "--output", tmp_path / "suite")
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert not (tmp_path / "suite").exists()


def test_a_cell_gets_a_gpu_where_a_node_has_one_and_a_node_must_be_large_enough():
    plain, with_gpus = ({"Alive": True, "Resources": {"CPU": 8.0, **more}} for more in ({}, {"GPU": 2.0}))
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    assert Cluster().gpus_among([plain, with_gpus]) == 1 and Cluster().gpus_among([plain, dead]) == 0
    assert Cluster(gpus_per_cell=0.5).gpus_among([with_gpus]) == 0.5
    for cluster in (Cluster(gpus_per_cell=1), Cluster(cpus_per_cell=16)):
        with pytest.raises(ValueError, match="no node of the Ray cluster has as many .they have 8 CPUs and 0 GPUs"):
            cluster.gpus_among([plain, dead])


def test_a_suite_that_is_being_handed_out_is_not_run_here_too(finished):
    with RunFolder(finished).lock(SPREAD), pytest.raises(Busy, match="hands the cells"):
        Suite(finished).run()


def test_a_cost_is_told_without_the_code_of_a_backbone_being_asked_for(arguments, tmp_path):
    vit = shutil.copytree(arguments[2], tmp_path / "vit")
    config = json.loads((vit / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (vit / "config.json").write_text(json.dumps(config))
    (vit / "own.py").write_text("raise SystemExit('this was run')")
    result = invoke("suite", *arguments[:2], vit, *arguments[3:], "--dry-run", "--output", tmp_path / "suite")
    assert result.exit_code == 2 and "cannot read config.json" in " ".join(result.output.split())
