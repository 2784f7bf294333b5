"""A heat of a race: one design, trained on all labelled images but those of one fold, and scored on these.

It is trained at a constant rate up to the end of its rung, and averaged weights are scored. In a later rung it goes on from
its checkpoint. What a heat does depends on its design, fold and rung alone, so heats of one rung can be run in any order, by
other processes and on other machines: `run_heat` takes plain data and gives plain data.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from peft_noah.jsonfile import dump_json, make_plain_folder, write_atomically
from peft_noah.plugins import import_plugins
from peft_noah.progress import Reporter
from peft_noah.run.carried_files import check_places, read_files, scratch_folder, write_files
from peft_noah.run.context import RunContext
from peft_noah.run.inputs import INPUTS
from peft_noah.run.models import add_design, classifiers
from peft_noah.run.names import CHECKPOINTS, LOGS, RACE_WEIGHTS, slug
from peft_noah.run.settings import RunSettings
from peft_noah.searching.design import Design
from peft_noah.searching.folds import cut_folds
from peft_noah.searching.race import Heat, Race, RaceSettings, Rung
from peft_noah.training import TrainingSettings
from peft_noah.training.evaluation import compute_logits
from peft_noah.training.head_start import start_head

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


class HeatRunner:
    """Runs heats of a race in this process, with images and backbone that are read once.

    Args:
        run: the run, in whose folder checkpoints, logs and averaged weights are.
        settings: of the race, with as many folds as it has.
        show: shows a heat's training, as `RunContext.train` has it; None: as any training.
    """

    def __init__(
        self,
        run: RunContext,
        settings: RaceSettings,
        show: Callable[[Heat], AbstractContextManager] | None = None,
    ) -> None:
        self.run, self.settings, self.show = run, settings, show
        self.labelled = run.splits.train + run.splits.validation
        self.folds = cut_folds(self.labelled.labels.tolist(), settings.folds, run.settings.seed)

    def __call__(self, design: Design, heat: Heat) -> tuple[list[float], dict[str, float]]:
        """The scores of a heat's fold, one an image, and what is noted beside them.

        Args:
            design: the one that ``heat.design`` counts.
            heat: the heat. It goes on from the checkpoint of the one before it in the same fold; without it, it begins anew and
            ends the same.
        """
        run, held_rows = self.run, set(self.folds[heat.fold])
        held = self.labelled.subset(sorted(held_rows))
        images = self.labelled.subset([row for row in range(len(self.labelled)) if row not in held_rows])
        training, until = heat_training(run.settings.training("design"), self.settings, heat.rung, len(images))
        model = add_design(run.frozen_backbone(), design, run.settings.recipe)
        if design.head_start and not run.has_begun(heat_name(design, heat.fold)):
            for head in classifiers(model):
                start_head(model, head, images, run.normalize, run.accelerator)
        show = None if self.show is None else self.show(heat)
        log = run.train(heat_name(design, heat.fold), model, images, training, until=until, show=show)
        logits = compute_logits(model, held, run.normalize, run.accelerator)
        run.on_main(_save_weights, model, weights_file(run, design, heat.fold))
        notes = {
            "accuracy": (logits.argmax(-1) == held.labels).double().mean().item(),
            "steps": log.steps,
            # of images, since the design started: forward and backward in training, forward where it was scored
            "trained": 2 * _images_seen(log.steps, len(images), training.batch_size),
            "scored": len(held) * (heat.rung + 1) + len(images) * design.head_start,
        }
        return image_scores(logits, held.labels), notes


def _images_seen(steps: int, num_images: int, batch_size: int) -> int:
    """How many images a training has seen after some steps, again in each epoch; the last batch of one may be smaller."""
    epochs, rest = divmod(steps, -(-num_images // batch_size))
    return epochs * num_images + min(rest * batch_size, num_images)


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
    ends = [  # never longer than their share, but of a step
        max(index + 1, math.floor(settings.trained(index) * training.epochs * per_epoch + 1e-6))
        for index in range(len(settings.rungs))
    ]
    # as many as the last rung needs, also where steps are so few that each rung has just one
    epochs = max(math.ceil(settings.trained(len(settings.rungs) - 1) * training.epochs), -(-ends[-1] // per_epoch))
    warmup = settings.rungs[0].share * training.epochs / 3
    return replace(training, epochs=epochs, schedule="constant", average=DECAY, warmup_epochs=warmup), ends[rung]


def heat_name(design: Design, fold: int) -> str:
    """What the training of a design on a fold is called in logs and checkpoints."""
    return f"race {design.name}, fold {fold}"


def weights_file(run: RunContext, design: Design, fold: int) -> Path:
    """Where the averaged weights of a design on a fold are kept until the winner has been trained on."""
    return run.folder / RACE_WEIGHTS / f"{slug(heat_name(design, fold))}.safetensors"


def _save_weights(model: nn.Module, path: Path) -> None:
    make_plain_folder(path.parent)
    weights = {
        name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
    }
    write_atomically(path, save(weights))


# ---------------------------------------------------------------------- elsewhere


def pack_heat(run: RunContext, race: Race, heat: Heat) -> dict[str, Any]:
    """All that another machine needs to run a heat of a run, as plain data for `run_heat`.

    ``files`` are those that the heat goes on from, by their place in the run folder: what was read, checkpoint and log.
    The machine must find data and backbone where the settings say.
    """
    design = race.designs[heat.design]
    return {
        "settings": asdict(run.settings),
        "race": asdict(race.settings),
        "design": design.to_dict(),
        "heat": asdict(heat),
        "files": read_files(run.folder, [run.folder / INPUTS, *_heat_files(run.folder, design, heat.fold)]),
    }


def run_heat(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Run a heat away from its run folder; the images and the backbone are kept for the next one of the same race.

    Args:
        packed: what `pack_heat` made.

    Returns:
        ``scores`` and ``notes`` for `Race.tell`, and ``files`` for `unpack_heat`.

    Raises:
        ValueError: data or backbone are not those that the run began with.
    """
    import_plugins(packed["settings"]["plugins"])
    design, heat = Design.from_dict(packed["design"]), Heat(**packed["heat"])
    inputs = packed["files"].get(INPUTS, b"")
    runner = _runner(dump_json(packed["settings"]), dump_json(packed["race"]), inputs)
    with scratch_folder() as folder:
        runner.run.move(folder)
        write_files(folder, packed["files"])
        scores, notes = runner(design, heat)
        left = read_files(folder, _heat_files(folder, design, heat.fold))
    return {"scores": scores, "notes": notes, "files": left}


def unpack_heat(run: RunContext, race: Race, heat: Heat, done: Mapping[str, Any]) -> None:
    """Write what a heat that was run elsewhere has left, so that the next rung and the winner go on from it.

    Args:
        run: the run.
        race: its race.
        heat: the heat.
        done: what `run_heat` gave for it.

    Raises:
        ValueError: it left a file that is none of its own.
    """
    check_places(done["files"], _places(race.designs[heat.design], heat.fold))
    write_files(run.folder, done["files"])


@functools.lru_cache(maxsize=1)
def _runner(settings: str, race: str, inputs: bytes) -> HeatRunner:
    """What runs the heats of one race in this process; each moves it into a folder of its own."""
    options = json.loads(race)
    with scratch_folder() as folder:
        if inputs:
            write_atomically(folder / INPUTS, inputs)
        run = RunContext(folder, RunSettings.from_dict(json.loads(settings)), Reporter(enabled=False))
        return HeatRunner(run, RaceSettings(**{**options, "rungs": tuple(Rung(**rung) for rung in options["rungs"])}))


def _places(design: Design, fold: int) -> list[str]:
    """Where a design's files on a fold lie in a run folder; patterns."""
    name = slug(heat_name(design, fold))
    return [f"{CHECKPOINTS}/{name}/*.safetensors", f"{LOGS}/{name}.jsonl", f"{RACE_WEIGHTS}/{name}.safetensors"]


def _heat_files(folder: Path, design: Design, fold: int) -> list[Path]:
    """The files of a design on a fold that are in a run folder."""
    return sorted(path for place in _places(design, fold) for path in folder.glob(place))
