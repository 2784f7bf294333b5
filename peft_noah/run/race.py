"""The race of a run: its folds of images, what a heat trains and how it is scored, and the winner that is trained on.

A heat trains one design on all labelled images but those of one fold, at a constant rate, and scores the fold with averaged
weights. A design that stays in the race goes on from its checkpoint. The winner begins from the mean of its folds' weights
and is trained on all labelled images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save
from torch import nn

from peft_noah.data.labelled import LabelledSplit
from peft_noah.jsonfile import make_plain_folder, write_atomically
from peft_noah.run.context import RunContext
from peft_noah.run.models import add_design
from peft_noah.run.names import RACE, RACE_WEIGHTS, slug
from peft_noah.run.reporting import package_versions
from peft_noah.searching.design import Design
from peft_noah.searching.folds import cut_folds, with_folds_for
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.race import Heat, Race, RaceSettings
from peft_noah.training import TrainingSettings
from peft_noah.training.evaluation import compute_logits
from peft_noah.training.head_start import start_head
from peft_noah.training.memory import peak_memory, start_measuring
from peft_noah.tuner.backbones import find_backbone

#: how much of the old average a step keeps, in the weights that score a heat
DECAY = 0.99

#: share of an image's score that its likelihood decides; its being right or wrong decides the rest
LIKELIHOOD = 0.25
#: factors on the logits that are tried where a likelihood is computed
TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(-8, 9))


def image_scores(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """How well each image is predicted: ``(1 - w) right + w (1 + log p / log C)`` with w = 0.25.

    p is the probability of the right class at the one temperature that suits these images best, so that a design is not
    marked down for being too sure or too unsure of all of them. A guess over all C classes has 1 + log p / log C = 0; no
    image counts for less than -1 there.

    Args:
        logits: (N, C).
        labels: (N,), class indices.
    """
    logits, classes = logits.double(), logits.shape[-1]
    losses = [F.cross_entropy(scale * logits, labels, reduction="none") for scale in TEMPERATURES]
    loss = min(losses, key=lambda each: each.mean().item())
    likelihood = (1 - loss / math.log(classes)).clamp(min=-1.0)
    right = (logits.argmax(-1) == labels).double()
    return ((1 - LIKELIHOOD) * right + LIKELIHOOD * likelihood).tolist()


@torch.no_grad()
def set_mean(model: nn.Module, models: Sequence[dict[str, torch.Tensor]]) -> None:
    """Give a model the mean of several models' trainable weights, by name."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.copy_(torch.stack([other[name].to(weight) for other in models]).mean(0))


# ---------------------------------------------------------------------- the stage


def run_race(run: RunContext, designs: Sequence[Design] = PORTFOLIO, settings: RaceSettings | None = None) -> Race:
    """Race designs on all labelled images of a run; race.json keeps it after every heat, and it goes on from there.

    Args:
        run: the run.
        designs: the first is the default.
        settings: None: the default ones; with more folds where classes have few images.

    Raises:
        ValueError: race.json is of another race.
    """
    run.prepare()
    labelled = run.splits.train + run.splits.validation
    labels = labelled.labels.tolist()
    settings = with_folds_for(settings or RaceSettings(), labels)
    race, path = _open_race(run, designs, settings), run.folder / RACE
    folds = cut_folds(labels, settings.folds, run.settings.seed)
    start_measuring(run.accelerator.device)
    while heats := race.ask():
        heat, started = heats[0], time.perf_counter()
        scores, notes = _run_heat(run, race, heat, labelled, folds)
        race.tell(heat, scores, **notes)
        run.on_main(_note_seconds, run, time.perf_counter() - started)
        run.on_main(race.save, path)
        if race.rung > heat.rung:
            run.reporter.say(describe_rung(race, heat.rung))
    run.forget(*(_name(design, fold) for design in race.designs for fold in range(settings.folds)))
    return race


def _open_race(run: RunContext, designs: Sequence[Design], settings: RaceSettings) -> Race:
    """The race of a run as far as it is."""
    asked = Race(designs, settings, provenance={"task": run.splits.to_dict()}, versions=package_versions())
    path = run.folder / RACE
    race = Race.load(path) if path.exists() else asked
    if (race.designs, race.settings) != (asked.designs, asked.settings):
        raise ValueError(f"{path} is of a race with other designs or settings. Choose another --output.")
    return race


def _note_seconds(run: RunContext, seconds: float) -> None:
    """Add the seconds of a heat to those of the race."""
    try:
        seconds += run.files.seconds("race")
    except (ValueError, OSError):  # the first heat
        pass
    run.files.note_stage("race", seconds, peak_memory(run.accelerator.device))


def _run_heat(
    run: RunContext, race: Race, heat: Heat, labelled: LabelledSplit, folds: list[list[int]]
) -> tuple[list[float], dict[str, float]]:
    """Scores of a heat's fold, and what is noted beside them."""
    design, held_rows = race.designs[heat.design], set(folds[heat.fold])
    held = labelled.subset(sorted(held_rows))
    images = labelled.subset([row for row in range(len(labelled)) if row not in held_rows])
    training, until = heat_training(run.settings.training("subnet"), race.settings, heat.rung, len(images))
    model = add_design(run.fresh_backbone(), design, run.settings.recipe)
    if design.head_start and heat.rung == 0:  # later it goes on from a checkpoint
        for head in classifiers(model):
            start_head(model, head, images, run.normalize, run.accelerator)
    log = run.train(_name(design, heat.fold), model, images, training, until=until)
    logits = compute_logits(model, held, run.normalize, run.accelerator)
    run.on_main(_save_weights, model, weights_file(run, design, heat.fold))
    # of images, since the design started; a forward pass alone costs a third
    forward = len(held) * (heat.rung + 1) + len(images) * design.head_start
    passes = log.steps * training.batch_size + forward / 3
    accuracy = (logits.argmax(-1) == held.labels).double().mean().item()
    return image_scores(logits, held.labels), {"accuracy": accuracy, "steps": log.steps, "passes": round(passes)}


def heat_training(
    training: TrainingSettings, settings: RaceSettings, rung: int, num_images: int
) -> tuple[TrainingSettings, int]:
    """How a heat is trained, and the step at which it ends.

    The rate stays constant after a warm-up of a third of the first rung: how long a design is trained is not known when it
    starts.

    Args:
        training: of a full training, whose epochs are the unit of the rungs' shares.
        settings: of the race.
        rung: index of the rung.
        num_images: images that the heat is trained on.
    """
    per_epoch = -(-num_images // training.batch_size)
    epochs = max(1, math.ceil(settings.trained(len(settings.rungs) - 1) * training.epochs))
    ends = [
        max(index + 1, round(settings.trained(index) * training.epochs * per_epoch))
        for index in range(len(settings.rungs))
    ]
    warmup = settings.rungs[0].share * training.epochs / 3
    return replace(training, epochs=epochs, schedule="constant", average=DECAY, warmup_epochs=warmup), ends[rung]


def start_winner(run: RunContext, race: Race | None = None) -> PeftModel:
    """The winner with the mean of its folds' weights, to be trained on; ``race`` is that of the run where it is None."""
    race = run_race(run) if race is None else race
    design = race.designs[race.winner]
    model = add_design(run.fresh_backbone(), design, run.settings.recipe)
    set_mean(model, [load_file(weights_file(run, design, fold)) for fold in range(race.settings.folds)])
    return model


def out_of_fold_accuracy(race: Race) -> tuple[float, int]:
    """Share of all labelled images that the winner predicted right when it was last scored, each by a model that had not
    seen it; and the number of images."""
    rung = race.rung - 1
    heats = [Heat(race.winner, fold, rung) for fold in range(race.settings.folds)]
    sizes = [len(race.told[heat]) for heat in heats]
    right = sum(race.notes[heat]["accuracy"] * size for heat, size in zip(heats, sizes, strict=True))
    return right / sum(sizes), sum(sizes)


def describe_rung(race: Race, rung: int) -> str:
    """Where the designs stood when a rung ended, a line each, the best first."""
    lines = [f"race, rung {rung + 1} of {len(race.settings.rungs)}:"]
    for standing in race.standings[rung]:
        design = race.designs[standing.design]
        lead = "default" if standing.design == 0 else f"{100 * standing.lead:+.1f} ± {100 * standing.error:.1f}"
        lines.append(
            f"  {design.name}: {100 * standing.score:.1f} ({lead}){standing.stopped and f', stopped: {standing.stopped}'}"
        )
    return "\n".join(lines)


def weights_file(run: RunContext, design: Design, fold: int) -> Path:
    """Where the averaged weights of a design on a fold are kept until the winner has been trained on."""
    return run.folder / RACE_WEIGHTS / f"{slug(_name(design, fold))}.safetensors"


def _name(design: Design, fold: int) -> str:
    return f"race {design.name}, fold {fold}"


def _save_weights(model: nn.Module, path: Path) -> None:
    make_plain_folder(path.parent)
    weights = {
        name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
    }
    write_atomically(path, save(weights))


def classifiers(model: PeftModel) -> list[nn.Linear]:
    """The trained Linears that make the logits."""
    core = model.base_model.model
    heads = map(core.get_submodule, find_backbone(core.config.model_type).head_names(core))
    return [h.modules_to_save[model.active_adapter] if isinstance(h, ModulesToSaveWrapper) else h for h in heads]
