"""The log of steps and Accelerate's trackers."""

import json

import pytest
from accelerate.state import AcceleratorState
from launched_training import SETTINGS, fit

from peft_noah.training import TrainingSettings, tracking
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.processes import make_accelerator
from peft_noah.training.tracking import StepLog, check_tracker, cut_log, start_trackers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_is_a_line(tmp_path):
    settings = TrainingSettings(**SETTINGS)
    log = StepLog(tmp_path / "log.jsonl", "supernet", settings, make_accelerator())
    losses = fit(make_accelerator(), on_step=log)["losses"].tolist()
    found = lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in found] == list(range(1, 7)) and {line["stage"] for line in found} == {"supernet"}
    assert [line["loss"] for line in found] == losses
    assert [line["rate"] for line in found] == [settings.rate_at(step, 3) for step in range(6)]
    assert 0 < found[0]["seconds"] < found[-1]["seconds"]


def test_the_log_of_an_interrupted_training_is_that_of_a_whole_one(tmp_path):
    def trained(path, checkpoint=None, stop=None):
        log = StepLog(path, "b", TrainingSettings(**SETTINGS), make_accelerator())

        def on_step(step, steps, loss):
            log(step, steps, loss)
            if step == stop:
                raise KeyboardInterrupt

        fit(make_accelerator(), on_step=on_step, checkpoint=checkpoint)

    earlier = '{"stage": "a", "step": 9, "loss": 1.0, "rate": 0.1, "seconds": 2.0}\n'
    for name in ("whole", "resumed"):
        (tmp_path / name).write_text(earlier)
    trained(tmp_path / "whole")
    checkpoint = CheckpointFolder(tmp_path / "checkpoint", every_seconds=None, every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "resumed", checkpoint, stop=5)
    before = lines(tmp_path / "resumed")[3]["seconds"]
    with open(tmp_path / "resumed", "a") as file:
        file.write('{"stage": "b", "st')  # killed while it wrote
    trained(tmp_path / "resumed", checkpoint)
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "resumed")
    assert resumed[4]["seconds"] > before
    for line in (*whole, *resumed):
        del line["seconds"]
    assert resumed == whole and len(whole) == 7


def test_a_line_without_its_end_is_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"stage": "a", "step": 1, "seconds": 2.5}\n{"stage": "a", "step": 2, "seconds": 3.5}')
    assert cut_log(path, "a", 3) == 2.5
    assert len(lines(path)) == 1


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    check_tracker(None)
    with pytest.raises(ValueError, match="tracker 'excel' is not known .*tensorboard"):
        check_tracker("excel")
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r"'tensorboard' is not installed: pip install 'peft-noah\[tensorboard\]'"):
        check_tracker("tensorboard")


def test_tensorboard_gets_loss_and_rate(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    check_tracker("tensorboard")
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = TrainingSettings(**SETTINGS)
    accelerator = make_accelerator(log_with="tensorboard", project_dir=tmp_path)
    start_trackers(accelerator, {"epochs": 2, "baselines": ("lora", "vpt"), "budget": None})
    log = StepLog(tmp_path / "log.jsonl", "supernet", settings, accelerator)
    losses = fit(accelerator, on_step=log)["losses"].tolist()
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "peft-noah")).Reload()
    found = events.Scalars("supernet/loss")
    assert [event.step for event in found] == list(range(1, 7))
    assert [event.value for event in found] == pytest.approx(losses)
    assert events.Scalars("supernet/rate")[0].value == pytest.approx(settings.rate_at(0, 3))
