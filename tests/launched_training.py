"""Trainings that tests run here and in other processes.

``python launched_training.py FOLDER``, under a launcher, leaves ``<case>-<process>.safetensors`` with the final weights
and the loss of each step.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import TorchDynamoPlugin
from conftest import make_model
from peft import get_peft_model
from safetensors.torch import save_file
from text_models import batch, make_text_model

from peft_noah import NoahConfig
from peft_noah.data.images import ImageSplit
from peft_noah.progress import Reporter
from peft_noah.run.context import RunContext
from peft_noah.run.race import _run_apart, run_race
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design
from peft_noah.searching.race import Race, RaceSettings, Rung
from peft_noah.training import ArchitectureSampler, TrainingSettings, make_accelerator, token_loss, train
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.interruption import Interrupted, Interruption
from peft_noah.training.state import Progress, TrainingState

#: 33 images in batches of 16: the last batch has one image, so that one of two processes has none
SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 5e-4, "seed": 1}
CASES = {
    "plain": {},
    "accumulated and clipped": {"accumulate": 3, "max_grad_norm": 0.1, "label_smoothing": 0.1},
    "per-process": {"sampling": "per-process"},
    "compiled": {"compiled": True, "blocks": 1},  # each block is seconds of a compiler's work
}


def normalize(pixels):
    return pixels.float() / 255 - 0.5


def make_images(number=33):
    """Images whose class is their brightness: learnable in a few steps."""
    labels = torch.arange(number) % 5
    noise = torch.randint(0, 20, (number, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return ImageSplit((labels.view(-1, 1, 1, 1) * 50 + noise).to(torch.uint8), labels)


def make_supernet(recipe="paper", blocks=4):
    return get_peft_model(make_model(num_hidden_layers=blocks), NoahConfig(recipe=recipe))


def fit(
    accelerator,
    recipe="paper",
    on_step=lambda *args: None,
    checkpoint=None,
    interruption=None,
    compiled=False,
    until=None,
    blocks=4,
    **changes,
):
    """Train a supernet; returns its weights and losses."""
    model, losses = make_supernet(recipe, blocks), []
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="aot_eager" if compiled else "no", dynamic=False)

    def note(step, steps, loss):
        losses.append(loss)
        on_step(step, steps, loss)

    train(
        model,
        make_images(),
        normalize,
        TrainingSettings(**{**SETTINGS, **changes}),
        accelerator,
        sampler=ArchitectureSampler(model.get_search_space(), seed=3),
        on_step=note,
        checkpoint=checkpoint,
        interruption=interruption,
        until=until,
    )
    accelerator.free_memory()
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return weights | {"losses": torch.tensor(losses, dtype=torch.float64)}


def interrupted_fit(accelerator, folder):
    """The last process alone gets a signal in step 3; all stop, and go on from what was saved."""

    def stop(step, steps, loss):
        if step == 3 and accelerator.process_index == accelerator.num_processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoint = CheckpointFolder(folder / "checkpoint", every_seconds=None, every_steps=2)
    try:
        with Interruption() as interruption:
            fit(accelerator, checkpoint=checkpoint, interruption=interruption, on_step=stop)
    except Interrupted as error:
        assert "after step 4, which is saved" in str(error), error
        return fit(accelerator, checkpoint=checkpoint)
    raise AssertionError("it was not interrupted")


DESIGNS = [Design("default", {"lora": 2}), Design("adapter", {"adapter": 2})]
RACE = RaceSettings(rungs=(Rung(2, 0.5), Rung(2, 1.0)), folds=3)


def tiny_run(inputs, output):
    """A run on `inputs`/task with `inputs`/vit."""
    asked = RunSettings(model=str(inputs / "vit"), dataset=str(inputs / "task"), epochs=2)
    return RunContext(output, asked, Reporter(enabled=False))


def failures_of_one(folder, accelerator):
    """What this process says where a heat of a race, data, a file of a run or a checkpoint fails in one of them alone."""
    run, said = tiny_run(folder, folder / "failing"), []
    race = Race(DESIGNS, RACE)

    def heat(design, heat):
        if heat.fold == 1:
            raise ValueError("this heat cannot be")
        return [0.0], {}

    def disk_full(*args):
        raise OSError("no space left")

    lost = tiny_run(folder, folder / "lost")
    if accelerator.process_index == 1:
        lost.settings = replace(lost.settings, dataset=str(folder / "nowhere"))
    state = TrainingState(make_model(), None, accelerator, {})
    state._checkpoint = lambda *args: None
    for work in (
        lambda: list(_run_apart(run, race, race.ask()[:2], heat)),
        lost.prepare,
        lambda: run.on_main(disk_full),
        lambda: state.save(SimpleNamespace(save=disk_full), Progress()),
    ):
        try:
            work()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def loss_of_five_texts(accelerator):
    """Two at a time: the last batch has one text, so that one of two processes has none."""
    texts = [batch(length)["input_ids"][0] for length in (9, 4, 2, 7, 5)]

    def collate(chosen):
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        return {"input_ids": ids.clamp(min=0), "labels": ids}

    return torch.tensor(token_loss(make_text_model("llama", "causal"), texts, collate, accelerator, 2))


def main(folder):
    accelerator = make_accelerator()
    results = {case: fit(accelerator, **changes) for case, changes in CASES.items()}
    results["interrupted"] = interrupted_fit(accelerator, folder)
    results["token loss"] = {"loss": loss_of_five_texts(accelerator)}
    run_race(tiny_run(folder, folder / "race"), DESIGNS, RACE)
    said = failures_of_one(folder, accelerator)
    (folder / f"said-{accelerator.process_index}.json").write_text(json.dumps(said))
    for case, tensors in results.items():
        save_file(tensors, folder / f"{case}-{accelerator.process_index}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
