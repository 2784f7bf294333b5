"""The race of a run: folds, scores, heats that go on, and the winner."""

import json
import math
import pickle
import re
import shutil
import tempfile

import pytest
import torch
from clusters import Here, assert_same_runs
from conftest import make_model
from safetensors.torch import load_file
from tiny_runs import invoke, write_task

from peft_noah.results.report import RunReport
from peft_noah.run import heats
from peft_noah.run import race as stage
from peft_noah.run.context import RunContext
from peft_noah.run.methods import RACE
from peft_noah.run.on_cluster import run_everything_on
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import check_stages, run_everything
from peft_noah.searching.design import Design
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.race import Heat, Race, RaceSettings, Rung
from peft_noah.training import TrainingSettings

DESIGNS = (
    Design("default", {"lora": 2}),
    Design("all", {"lora": 1}, {"target_modules": ["query", "fc1"], "lora_scale": 4.0}),
    Design("head", {"adapter": 2}, head_start=True),
)
SHORT = RaceSettings(rungs=(Rung(3, 0.5), Rung(2, 1.0)))


@pytest.fixture(scope="module", autouse=True)
def a_step_is_enough():
    """The tasks of these tests have an epoch of one step: races of a run would leave all designs but the default out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft_noah.searching.race_length.FEWEST_STEPS", 1)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    make_model().save_pretrained(folder / "vit")
    return folder / "vit", write_task(folder / "task", train=24, validation=12)


def open_run(folders, output):
    backbone, task = folders
    return RunContext(output, RunSettings(model=str(backbone), dataset=str(task), strategy="race", epochs=2))


def test_an_image_counts_by_being_right_and_by_its_likelihood_at_the_best_temperature():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    scores = heats.image_scores(logits, labels)
    assert scores == pytest.approx(heats.image_scores(8 * logits, labels))  # a sure design counts as an unsure one
    losses = []
    for scale in heats.TEMPERATURES:
        log_p = torch.log_softmax(scale * logits.double(), -1)
        losses.append(-log_p[range(3), labels])
    loss = min(losses, key=lambda each: each.mean().item())
    right = [1, 1, 0]
    expected = [0.75 * r + 0.25 * max(-1.0, 1 - x.item() / math.log(3)) for r, x in zip(right, loss, strict=True)]
    assert scores == pytest.approx(expected)


def test_heats_end_where_their_rung_says_and_warm_up_in_the_first():
    settings = RaceSettings(rungs=(Rung(3, 0.06), Rung(2, 0.1)))
    training, until = heats.heat_training(TrainingSettings(epochs=20), settings, 0, 500)
    assert until == math.floor(0.06 * 20 * 8) == 9
    ends = [heats.heat_training(TrainingSettings(epochs=2), settings, rung, 20) for rung in range(2)]
    assert [until for _, until in ends] == [1, 2] and ends[0][
        0
    ].epochs == 2  # each rung trains, also of one step an epoch
    assert heats.heat_training(TrainingSettings(epochs=20), settings, 1, 500) == (training, math.floor(0.16 * 20 * 8))
    assert (training.epochs, training.schedule) == (4, "constant") and training.warmup_epochs == pytest.approx(0.4)


@pytest.fixture(scope="module")
def whole_run(folders, tmp_path_factory):
    """A run whose race is over, and the race."""
    run = open_run(folders, tmp_path_factory.mktemp("whole") / "run")
    return run, stage.run_race(run, DESIGNS, SHORT)


def test_a_race_scores_all_labelled_images_and_goes_on_after_an_interruption(
    folders, whole_run, tmp_path, monkeypatch
):
    run, whole = whole_run
    assert whole.is_over and {len(scores) for scores in whole.told.values()} == {18}
    assert {heat.rung for heat in whole.told} == {0, 1}
    for heat, notes in whole.notes.items():  # 18 images on each side; the third design fits its head to them first
        assert notes["trained"] == 2 * 18 * notes["steps"]
        assert notes["scored"] == 18 * (heat.rung + 1) + 18 * (heat.design == 2)
    path = tmp_path / "part" / "race.json"
    tell, left = Race.tell, [2]

    def stop(self, *args, **kwargs):
        tell(self, *args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Race, "tell", stop)
    with pytest.raises(KeyboardInterrupt):
        stage.run_race(open_run(folders, tmp_path / "part"), DESIGNS, SHORT)
    monkeypatch.undo()
    assert len(Race.load(path).told) == 1
    stage.run_race(open_run(folders, tmp_path / "part"), DESIGNS, SHORT)
    assert path.read_bytes() == (run.folder / "race.json").read_bytes()
    with pytest.raises(ValueError, match="other designs or settings"):
        stage.run_race(open_run(folders, tmp_path / "part"), DESIGNS[:2], SHORT)


def test_a_race_that_was_begun_keeps_its_designs_and_settings_whatever_is_the_default_now(folders, whole_run):
    again = stage.run_race(open_run(folders, whole_run[0].folder))
    assert again.to_dict() == whole_run[1].to_dict()


def test_a_heat_without_the_checkpoint_of_the_one_before_begins_anew_and_ends_the_same(folders, tmp_path):
    run, head = open_run(folders, tmp_path / "run"), DESIGNS[2]
    runner = heats.HeatRunner(run, SHORT)
    runner(head, Heat(2, 0, 0))
    whole = runner(head, Heat(2, 0, 1))
    run.forget(heats.heat_name(head, 0))
    assert runner(head, Heat(2, 0, 1)) == whole


def test_heats_that_other_machines_run_leave_the_same_bytes(folders, whole_run, tmp_path, monkeypatch):
    """Each heat gets nothing but bytes, and all that it leaves comes back as bytes."""
    run, sent = open_run(folders, tmp_path / "run"), []
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))

    def elsewhere(function, packed):
        for one in packed:
            sent.append(pickle.dumps((function, one)))
            function, one = pickle.loads(sent[-1])
            yield pickle.loads(pickle.dumps(function(one)))
            assert not list((tmp_path / "node").iterdir())  # whatever ends the process now, nothing is left behind

    race = stage.run_race(run, DESIGNS, SHORT, map=elsewhere)
    assert len(sent) == len(race.told) == 10
    for name in ("race.json", *(f"race/{path.name}" for path in (run.folder / "race").iterdir())):
        assert (run.folder / name).read_bytes() == (whole_run[0].folder / name).read_bytes()
    logs = [sorted(path.name for path in (each.folder / "logs").iterdir()) for each in (run, whole_run[0])]
    assert logs[0] == logs[1] and not list(run.folder.glob("checkpoints/*"))
    with pytest.raises(ValueError, match="no file of its work"):
        heats.unpack_heat(run, race, Heat(0, 0, 0), {"files": {"race/race.json": b""}})


def test_the_winner_starts_from_the_mean_of_its_folds(whole_run):
    run, race = whole_run
    design = race.designs[race.winner]
    parts = [load_file(heats.weights_file(run, design, fold)) for fold in range(2)]
    weights = dict(stage.start_winner(run, race).named_parameters())
    for name in parts[0]:
        torch.testing.assert_close(weights[name], (parts[0][name] + parts[1][name]) / 2)
    accuracy, images = stage.out_of_fold_accuracy(race)
    assert 0 <= accuracy <= 1 and images == 36


def test_a_race_and_its_winner_cost_what_was_asked(folders, tmp_path):
    backbone, task = folders
    asked = RunSettings(model=str(backbone), dataset=str(task), epochs=6, strategy="race", effort=1.5, baselines=())
    run = RunContext(tmp_path / "run", asked)
    run_everything(run)
    race = Race.load(run.folder / "race.json")
    (note,) = [note for note in run.files.report().notes if note.startswith("race: cost")]
    total, *parts = map(float, re.findall(r"\d+\.\d+", note))
    assert total == pytest.approx(sum(parts), abs=0.02) and 1.5 - 1 / 6 < total <= 1.5
    trained, scored = stage.passes_spent(race)
    steps = [json.loads(line)["step"] for line in (run.folder / "logs" / "race-on-train-validation.jsonl").open()]
    assert len(steps) == stage.epochs_left(run, race)  # 36 images are a step
    assert trained + scored + 2 * 36 * len(steps) <= 1.5 * 2 * 6 * 36


def test_the_least_effort_trains_the_default_design_alone_and_says_so(folders, tmp_path):
    backbone, task = folders
    arguments = ["run", "--strategy", "race", "--model", backbone, "--dataset", task, "--epochs", "1", "--effort", "1"]
    done = invoke(*arguments, "--baselines", "none", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "trained without a race, since it is the only one or --effort leaves" in " ".join(done.output.split())
    assert "with n = 9 (test)" in " ".join(done.output.split())  # nothing is said of validation images
    (result,) = RunReport.load(tmp_path / "run" / "results.json").results
    assert result.validation is None and result.test is not None
    config = json.loads((tmp_path / "run" / "best" / "adapter_config.json").read_text())
    assert config["architecture"] == PORTFOLIO[0].architecture(4).to_dict()
    assert not (tmp_path / "run" / "figures").exists()


@pytest.fixture(scope="module")
def whole_job(folders, tmp_path_factory):
    """A run of the command line with the default portfolio: its arguments, its folder, what it said."""
    folder = tmp_path_factory.mktemp("job") / "run"
    arguments = ["run", "--strategy", "race", "--model", folders[0], "--dataset", folders[1], "--epochs", "6"]
    return arguments, folder, invoke(*arguments, "--baselines", "linear", "--output", folder)


def test_a_run_with_the_race_ends_with_the_winner_in_best(whole_job):
    arguments, folder, done = whole_job
    assert done.exit_code == 0, done.output
    race = Race.load(folder / "race.json")
    assert race.designs == PORTFOLIO and race.is_over
    results = {result.method: result for result in RunReport.load(folder / "results.json").results}
    assert list(results) == ["linear", "race"]
    accuracy, images = stage.out_of_fold_accuracy(race)
    assert (results["race"].validation, results["race"].n_validation) == (pytest.approx(accuracy), images)
    assert "use best/, a copy of adapter-race/: its design won the race" in " ".join(done.output.split())
    config = json.loads((folder / "best" / "adapter_config.json").read_text())
    winner = race.designs[race.winner]
    assert config["architecture"] == winner.architecture(4).to_dict()
    assert config["lora_scale"] == winner.options["lora_strength"] * 1536 / 24  # the width of make_model
    card = (folder / "best" / "README.md").read_text()
    assert winner.name in card and (folder / "figures" / "race.png").exists()
    assert not list((folder / "checkpoints").glob("*"))
    again = invoke(*arguments, "--baselines", "linear", "--output", folder)
    assert again.exit_code == 0 and "use best/" in " ".join(again.output.split())
    searched = invoke("search", folder)
    said = f"{winner.name}, the default design, goes on" if race.winner == 0 else f"{winner.name} has won"
    assert searched.exit_code == 0 and said in " ".join(searched.output.split())
    assert not (folder / "supernet").exists()
    other = invoke(*arguments, "--baselines", "lora", "--output", folder)
    assert other.exit_code == 2 and "other baselines" in " ".join(other.output.split())


def test_the_whole_job_on_a_cluster_leaves_the_same_files(whole_job, tmp_path, capsys):
    settings, folder = RunSettings.load(whole_job[1] / "settings.json"), tmp_path / "run"
    cluster = Here()
    run_everything_on(cluster, RunContext(folder, settings))
    assert cluster.mapped == len(Race.load(folder / "race.json").told)  # each heat is a piece
    assert_same_runs(folder, whole_job[1])
    assert_same_runs(whole_job[1], folder)
    results = [RunReport.load(each / "results.json").results for each in (folder, whole_job[1])]
    assert [result.method for result in results[0]] == [result.method for result in results[1]]
    capsys.readouterr()
    run_everything_on(Here(), RunContext(folder))  # all of it is there
    assert "race: its result is there already, and is kept" in capsys.readouterr().err


def test_a_race_that_was_begun_goes_on_heat_by_heat_on_a_cluster(whole_job, tmp_path):
    folder = shutil.copytree(whole_job[1], tmp_path / "run")
    for name in ("results", "adapter-race", "best", "figures"):
        shutil.rmtree(folder / name)
    data = json.loads((folder / "race.json").read_text())
    whole = Race.load(folder / "race.json")
    begun = Race(whole.designs, whole.settings, provenance=whole.provenance, versions=whole.versions)
    for heat in begun.ask()[:-1]:
        begun.tell(heat, whole.told[heat], **whole.notes[heat])
    begun.save(folder / "race.json")
    cluster = Here()
    run_everything_on(cluster, RunContext(folder))
    assert cluster.mapped == len(whole.told) - len(begun.told)
    assert json.loads((folder / "race.json").read_text()) == data
    assert_same_runs(folder, whole_job[1])


def test_a_budget_leaves_out_the_designs_that_are_larger_and_says_which(folders, tmp_path, capsys):
    backbone, task = folders
    settings = {"model": str(backbone), "dataset": str(task), "epochs": 2}
    run = RunContext(tmp_path / "run", RunSettings(**settings, strategy="race", budget=2_700))
    fitting = stage.within_budget(run, PORTFOLIO)  # rank 2 on all sites: 4 blocks x 2 x (4 x 48 + 2 x 72) = 2,688
    assert fitting == [design for design in PORTFOLIO if set(design.dims) == {"lora"} and design.dims["lora"] == 2]
    said = capsys.readouterr()
    assert "designs fit the budget of 2,700 parameters: all sites: 2,688" in " ".join((said.out + said.err).split())
    check_stages(run, RACE)  # the race says it, and so no check before does
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="no design of the race fits a budget of 10 parameters: all sites: 2,688"):
        run_everything(RunContext(tmp_path / "run", RunSettings(**settings, strategy="race", budget=10)))
    assert not (tmp_path / "run").exists()
