"""The loop: schedule, supernet sampling, frozen backbone, non-finite losses, evaluation."""

import math

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_model
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from peft_noah import NoahConfig
from peft_noah.data.images import ImageSplit
from peft_noah.training import (
    ArchitectureSampler,
    NonFiniteLossError,
    SampleArchitectureCallback,
    TrainingSettings,
    make_accelerator,
    train,
)
from peft_noah.training.evaluation import evaluate


def normalize(pixels):
    return pixels.float() / 255 - 0.5


@pytest.fixture
def images():
    """40 images whose class is their brightness: learnable in a few steps."""
    labels = torch.arange(40) % 5
    noise = torch.randint(0, 20, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSplit((labels.view(-1, 1, 1, 1) * 50 + noise).to(torch.uint8), labels)


@pytest.fixture
def supernet():
    return get_peft_model(make_model(), NoahConfig())


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("recipe", "stage", "protocol", "epochs", "rate", "decay"),
    [
        ("paper", "supernet", "vtab", 500, 5e-4, 1e-3),
        ("paper", "subnet", "vtab", 100, 1e-3, 1e-3),
        ("paper", "subnet", "few_shot", 100, 5e-3, 1e-3),
        ("paper", "full", "vtab", 100, 1e-4, 1e-3),
        ("released", "supernet", "vtab", 500, 5e-4, 1e-4),
        ("released", "supernet", "few_shot", 300, 5e-4, 1e-4),
    ],
)
def test_named_settings_are_the_papers_numbers(recipe, stage, protocol, epochs, rate, decay):
    settings = TrainingSettings.named(recipe, stage, protocol)
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (epochs, rate, decay)
    assert (settings.batch_size, settings.label_smoothing) == (64, 0.0)


def test_the_rate_rises_over_ten_epochs_and_falls_as_a_cosine():
    settings = TrainingSettings.named("released", "subnet")
    rates = [settings.rate_at(step, 13) for step in range(1300)]
    assert rates[129] == pytest.approx(1e-3) == max(rates)
    assert rates[0] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 130)
    assert rates[715] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 2)
    assert settings.rate_at(1300, 13) == pytest.approx(1e-5)


def test_a_short_training_warms_up_for_a_tenth():
    settings = TrainingSettings(epochs=20)
    assert settings.rate_at(2 * 13 - 1, 13) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("learning_rate", math.nan),
        ("max_grad_norm", 0.0),
        ("warmup_epochs", -3),
        ("warmup_epochs", math.inf),
        ("seed", 2**31),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrainingSettings(**{field: value})


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("recipe", ("relased", "subnet")),
        ("stage", ("paper", "supernett")),
        ("protocol", ("paper", "subnet", "few-shot")),
    ],
)
def test_a_misspelt_name_is_not_taken_for_a_default(what, names):
    with pytest.raises(ValueError, match=f"{what} must be one of"):
        TrainingSettings.named(*names)


def test_a_supernet_learns_and_only_its_modules_change(supernet, images):
    before = weights(supernet)
    sampler = ArchitectureSampler(supernet.get_search_space(), seed=3)
    seen = []
    settings = TrainingSettings(epochs=40, batch_size=16, learning_rate=1e-2, warmup_epochs=1)
    log = train(
        supernet,
        images,
        normalize,
        settings,
        make_accelerator(),
        sampler=sampler,
        on_step=lambda step, total, loss: seen.append((step, total, supernet.get_architecture())),
    )
    assert log.steps == len(seen) == 120 and seen[-1][:2] == (120, 120)
    assert [architecture for _, _, architecture in seen] == [sampler(step) for step in range(120)]
    assert log.losses[-1] < 0.7 * log.losses[0]
    changed = {name for name, value in supernet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".noah_" in name or "modules_to_save" in name for name in changed)
    supernet.set_architecture(supernet.get_search_space().largest())
    assert evaluate(supernet, images, normalize, make_accelerator()) >= 0.4  # twice chance


def test_the_same_seed_trains_the_same_weights(images):
    results = []
    for _ in range(2):
        model = get_peft_model(make_model(), NoahConfig(recipe="released"))
        sampler = ArchitectureSampler(model.get_search_space())
        train(model, images, normalize, TrainingSettings(epochs=1, batch_size=16), make_accelerator(), sampler=sampler)
        results.append(weights(model))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_non_finite_loss_stops_and_names_step_and_architecture(supernet, images):
    sampler = ArchitectureSampler(supernet.get_search_space())
    with torch.no_grad():
        supernet.get_parameter("base_model.model.classifier.modules_to_save.default.weight").fill_(math.inf)
    with pytest.raises(NonFiniteLossError, match=r"at step 0 with Architecture.lora=.*Lower the learning rate"):
        train(supernet, images, normalize, TrainingSettings(epochs=1), make_accelerator(), sampler=sampler)


def test_nan_in_the_input_is_named_as_the_cause(supernet, images):
    def broken(pixels):
        return normalize(pixels) * math.nan

    with pytest.raises(NonFiniteLossError, match="images of this batch hold NaN"):
        train(supernet, images, broken, TrainingSettings(epochs=1), make_accelerator())


def test_a_model_with_nothing_to_train_is_refused(images):
    with pytest.raises(ValueError, match="nothing in the model requires gradients"):
        train(make_model().requires_grad_(False), images, normalize, TrainingSettings(epochs=1), make_accelerator())


def test_gradient_clipping_bounds_the_norm_at_every_step(supernet, images):
    accelerator, norms = make_accelerator(), []
    clip = accelerator.clip_grad_norm_

    def spy(parameters, limit):
        before = float(clip(parameters, limit))
        norms.append((before, float(torch.stack([p.grad.norm() for p in parameters]).norm())))

    accelerator.clip_grad_norm_ = spy
    train(supernet, images, normalize, TrainingSettings(epochs=1, batch_size=20, max_grad_norm=1e-3), accelerator)
    assert len(norms) == 2
    assert all(before > 1e-3 and after == pytest.approx(1e-3, rel=1e-3) for before, after in norms)


def test_bfloat16_through_accelerate_trains_float32_weights(supernet, images):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        seen = set()
        supernet.base_model.model.classifier.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
        log = train(supernet, images, normalize, TrainingSettings(epochs=1, batch_size=20), make_accelerator("bf16"))
        assert seen == {torch.bfloat16} and all(math.isfinite(loss) for loss in log.losses)
        assert {p.dtype for p in supernet.parameters()} == {torch.float32}
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_evaluation_restores_the_mode(supernet, images):
    supernet.train()
    evaluate(supernet, images, normalize, make_accelerator())
    assert supernet.training


def test_trainer_samples_an_architecture_per_step_and_evaluates_the_largest(supernet, images, tmp_path):
    seen = []

    class Spy(SampleArchitectureCallback):
        def on_step_begin(self, *args, model=None, **kwargs):
            super().on_step_begin(*args, model=model, **kwargs)
            seen.append(model.get_architecture())

    def collate(rows):
        return {
            "pixel_values": normalize(torch.stack([row["pixel_values"] for row in rows])),
            "labels": torch.stack([row["labels"] for row in rows]),
        }

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index]

    Trainer(
        model=supernet,
        args=TrainingArguments(
            str(tmp_path), max_steps=4, per_device_train_batch_size=8, report_to="none", label_names=["labels"]
        ),
        train_dataset=Rows(),
        data_collator=collate,
        callbacks=[Spy(seed=5)],
    ).train()
    sampler = ArchitectureSampler(supernet.get_search_space(), seed=5)
    assert seen == [sampler(step) for step in range(4)]
    assert supernet.get_architecture() == supernet.get_search_space().largest()


def test_evaluation_restores_the_mode_after_an_error(supernet, images):
    supernet.train()
    with pytest.raises(ZeroDivisionError):
        evaluate(supernet, images, lambda pixels: 1 / 0, make_accelerator())
    assert supernet.training


def test_weights_that_train_in_float16_are_refused(images):
    model = get_peft_model(make_model().half(), NoahConfig(search_space="vtab"), autocast_adapter_dtype=False)
    with pytest.raises(ValueError, match=r"of the weights that train are float16.*dtype=torch.float32"):
        train(model, images, normalize, TrainingSettings(epochs=1), make_accelerator())
