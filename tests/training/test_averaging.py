"""Averaged weights: their formula, their place in a training, and trainings that end at a step and go on."""

import pytest
import torch
from launched_training import fit
from torch import nn

from peft_noah.training import TrainingSettings, make_accelerator
from peft_noah.training.averaging import WeightAverage
from peft_noah.training.checkpoint import CheckpointFolder


def test_the_average_of_three_steps_is_the_formula():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average, expected = WeightAverage(model, decay=0.15), 1.0
    for step, value in enumerate((3.0, 5.0, -2.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.15, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == -2.0


def test_frozen_weights_are_not_averaged():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [weight.shape for weight in WeightAverage(model).averages] == [(2, 2)]


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        WeightAverage(nn.Linear(1, 1), decay)
    with pytest.raises(ValueError, match="average is .*; give a finite number of at least 0 and below 1"):
        TrainingSettings(average=decay)


def test_a_training_ends_with_the_average_of_its_steps():
    averaged = fit(make_accelerator(), average=0.9)
    plain = fit(make_accelerator())
    assert torch.equal(averaged.pop("losses"), plain.pop("losses"))
    assert averaged.keys() == plain.keys() and any(not torch.equal(averaged[name], plain[name]) for name in plain)


@pytest.mark.parametrize("until", [2, 3, 4])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_training_in_two_calls_ends_with_the_bytes_of_one(until, average, tmp_path):
    options = {"average": average, "schedule": "constant"}
    whole = fit(make_accelerator(), "released", **options)
    folder = CheckpointFolder(tmp_path, every_seconds=None)
    first = fit(make_accelerator(), "released", checkpoint=folder, until=until, **options)
    assert len(first["losses"]) == until
    rest = fit(make_accelerator(), "released", checkpoint=folder, **options)
    rest["losses"] = torch.cat([first["losses"], rest["losses"]])
    assert whole.keys() == rest.keys() and all(torch.equal(whole[name], rest[name]) for name in whole)


def test_a_checkpoint_behind_the_end_of_a_call_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path, every_seconds=None)
    fit(make_accelerator(), checkpoint=folder, until=4)
    with pytest.raises(ValueError, match="step 4, behind step 3"):
        fit(make_accelerator(), checkpoint=folder, until=3)


def test_a_constant_schedule_stays_at_its_peak():
    settings = TrainingSettings(epochs=10, schedule="constant", learning_rate=2e-3)
    assert [settings.rate_at(step, 10) for step in (9, 10, 99)] == [2e-3] * 3
    assert settings.rate_at(0, 10) == pytest.approx(2e-4)
