"""Interrupted trainings end with the bytes of an uninterrupted one; `examples/fault_drill.py` kills whole runs."""

import signal

import launched_training
import pytest
import torch
from launched_training import fit

from peft_noah.training import make_accelerator
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.interruption import Interrupted, Interruption


def folder(path, steps=1):
    return CheckpointFolder(path, every_seconds=None, every_steps=steps)


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


class Stop(Exception):
    """Stands for anything that ends a training between two steps."""


def stop_after(number):
    def stop(step, steps, loss):
        if step == number:
            raise Stop

    return stop


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_training_goes_on_bit_for_bit_wherever_it_stopped(recipe, tmp_path):
    whole = fit(make_accelerator(), recipe)
    for step in (2, 3, 6):  # two epochs of three steps: inside an epoch, at its end, and at the end of all
        losses = []
        with pytest.raises(Stop):
            fit(make_accelerator(), recipe, checkpoint=folder(tmp_path / str(step)), on_step=stop_after(step))
        note = lambda step, steps, loss: losses.append((step, loss))  # noqa: B023, E731
        resumed = fit(make_accelerator(), recipe, checkpoint=folder(tmp_path / str(step)), on_step=note)
        resumed["losses"] = whole["losses"][: step - 1].tolist() + [loss for _, loss in losses]
        resumed["losses"] = torch.tensor(resumed["losses"], dtype=torch.float64)
        assert losses[0][0] == step and equal(whole, resumed)


def test_the_log_of_a_resumed_training_counts_all_of_it(tmp_path):
    from conftest import make_model
    from launched_training import make_images, normalize

    from peft_noah.training import TrainingSettings, train

    def log(**options):
        return train(make_model(), make_images(), normalize, TrainingSettings(epochs=2), make_accelerator(), **options)

    whole = log()
    with pytest.raises(Stop):
        log(checkpoint=folder(tmp_path), on_step=stop_after(2))
    resumed = log(checkpoint=folder(tmp_path))
    assert (resumed.losses, resumed.steps) == (whole.losses, whole.steps)
    assert resumed.peak_memory >= whole.peak_memory > 1e6 and resumed.seconds > 0


def test_a_finished_training_is_not_repeated(tmp_path):
    first = fit(make_accelerator(), checkpoint=folder(tmp_path, 100))
    again = fit(make_accelerator(), checkpoint=folder(tmp_path, 100))
    assert len(again.pop("losses")) == 0
    first.pop("losses")
    assert equal(first, again)


def test_what_ended_where_it_was_to_goes_on_without_a_word_and_what_was_interrupted_says_so(tmp_path, caplog):
    with caplog.at_level("INFO", "peft_noah"):
        fit(make_accelerator(), checkpoint=folder(tmp_path, 100), until=2)
        with pytest.raises(Stop):
            fit(make_accelerator(), checkpoint=folder(tmp_path, 1), on_step=stop_after(4))
        assert "going on" not in caplog.text
        fit(make_accelerator(), checkpoint=folder(tmp_path, 100), until=5)
    assert "going on from step 3 of" in caplog.text


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, caplog):
    whole = fit(make_accelerator(), "released")
    with pytest.raises(Stop):
        fit(make_accelerator(), "released", checkpoint=folder(tmp_path), on_step=stop_after(5))
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = fit(make_accelerator(), "released", checkpoint=folder(tmp_path))
    assert "is damaged" in caplog.text and len(resumed["losses"]) == 3
    resumed["losses"] = whole["losses"]
    assert equal(whole, resumed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"learning_rate": 0.5}, "learning_rate is 0.0005 there and 0.5 here"), ({"recipe": "released"}, "weights is")],
)
def test_a_checkpoint_of_another_training_is_refused(changes, message, tmp_path):
    fit(make_accelerator(), checkpoint=folder(tmp_path))
    with pytest.raises(ValueError, match=message):
        fit(make_accelerator(), checkpoint=folder(tmp_path), **changes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_after_the_step(number, tmp_path):
    whole = fit(make_accelerator(), "released")
    checkpoint = CheckpointFolder(tmp_path)
    with (
        Interruption() as interruption,
        pytest.raises(Interrupted, match="after step 3, which is saved.* same command"),
    ):
        on_step = lambda step, steps, loss: step == 2 and signal.raise_signal(number)  # noqa: E731
        fit(make_accelerator(), "released", checkpoint=checkpoint, interruption=interruption, on_step=on_step)
    resumed = fit(make_accelerator(), "released", checkpoint=checkpoint)
    assert len(resumed["losses"]) == 3
    resumed["losses"] = whole["losses"]
    assert equal(whole, resumed)


@pytest.mark.parametrize(("step", "message"), [(1, r"^stopped \(SIGTERM\)"), (2, "after step 2, which is saved")])
def test_a_signal_while_a_compiler_works_is_not_left_until_the_step_ends(step, message, tmp_path, monkeypatch):
    calls, plain = [], launched_training.normalize

    def normalize(pixels):
        calls.append(pixels)
        if len(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return plain(pixels)

    monkeypatch.setattr(launched_training, "normalize", normalize)
    with Interruption() as interruption, pytest.raises(Interrupted, match=message):
        checkpoint = CheckpointFolder(tmp_path)
        fit(make_accelerator(), compiled=True, blocks=1, checkpoint=checkpoint, interruption=interruption)
    assert any(tmp_path.iterdir()) == (step > 1)


def test_a_signal_without_a_checkpoint_folder_stops_and_says_that_nothing_was_saved():
    with Interruption() as interruption, pytest.raises(Interrupted, match="no checkpoint folder"):
        fit(
            make_accelerator(),
            interruption=interruption,
            on_step=lambda step, steps, loss: signal.raise_signal(signal.SIGTERM),
        )


def test_checkpoints_by_time_change_nothing(tmp_path):
    whole = fit(make_accelerator(), "released")
    assert equal(whole, fit(make_accelerator(), "released", checkpoint=CheckpointFolder(tmp_path, every_seconds=1e-6)))
