"""The race of a run: its heats, what is kept of them, and the winner that is trained on.

What a heat does is in :mod:`peft_noah.run.heats`. The winner begins from the mean of its folds' weights and is trained on all
labelled images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from peft_noah.run.context import RunContext
from peft_noah.run.heats import HeatRunner, heat_name, pack_heat, run_heat, unpack_heat, weights_file
from peft_noah.run.models import add_design, count_trainable, lacks_place
from peft_noah.run.names import RACE
from peft_noah.run.race_board import RaceBoard
from peft_noah.run.reporting import package_versions
from peft_noah.searching.budget import BudgetError
from peft_noah.searching.design import Design
from peft_noah.searching.race import Heat, Race, RaceSettings
from peft_noah.searching.race_length import winner_epochs
from peft_noah.training.memory import peak_memory, start_measuring
from peft_noah.training.processes import together


@torch.no_grad()
def set_mean(model: nn.Module, models: Sequence[dict[str, torch.Tensor]]) -> None:
    """Give a model the mean of several models' trainable weights, by name."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.copy_(torch.stack([other[name].to(weight) for other in models]).mean(0))


# ---------------------------------------------------------------------- the stage


def run_race(
    run: RunContext,
    designs: Sequence[Design] | None = None,
    settings: RaceSettings | None = None,
    *,
    map: Callable[..., Iterable[Mapping[str, Any]]] | None = None,
) -> Race:
    """Race designs on all labelled images of a run; race.json keeps it after every heat, and it goes on from there.

    Args:
        run: the run.
        designs: the first is the default; None: those of the run, or of its race where that has begun.
        settings: None: those of the run, for its images.
        map: called as ``map(run_heat, packed)`` for the heats of a rung, to run them on other machines; gives what
            `run_heat` gives, in the order of ``packed``. None: they are run here.

    Raises:
        ValueError: race.json is of another race.
    """
    race, path = open_race(run, designs, settings), run.folder / RACE
    run.on_main(_begin, run, race)
    board = RaceBoard(race, run.reporter)
    heats_here = HeatRunner(run, race.settings, board.training) if map is None else None
    start_measuring(run.accelerator.device)
    with board.shown():
        while asked := race.ask():
            started = time.perf_counter()
            if heats_here is None:
                outcomes = _run_elsewhere(run, race, asked, map)
            elif run.accelerator.num_processes > 1:
                outcomes = _run_apart(run, race, asked, heats_here)
            else:
                outcomes = (heats_here(race.designs[heat.design], heat) for heat in asked)
            for heat, (scores, notes) in zip(asked, outcomes, strict=True):
                race.tell(heat, scores, **notes)
                run.on_main(_note_seconds, run, time.perf_counter() - started)
                run.on_main(race.save, path)
                board.told(heat)
                started = time.perf_counter()
    run.forget(*(heat_name(design, fold) for design in race.designs for fold in range(race.settings.folds)))
    return race


def _begin(run: RunContext, race: Race) -> None:
    """Leave a race as it begins, where there is none yet: one of a single design runs no heat."""
    if not (run.folder / RACE).exists():
        _note_seconds(run, 0.0)
        race.save(run.folder / RACE)


def _run_apart(run: RunContext, race: Race, heats: Sequence[Heat], run_heat: HeatRunner) -> Iterator[tuple]:
    """Scores and notes of heats that the processes of a launcher share, as many at a time; each runs its own alone.

    Raises:
        ValueError: a heat has failed in another process; here it raises what it raises.
    """
    group = run.accelerator
    count, mine = group.num_processes, group.process_index
    for first in range(0, len(heats), count):
        taken, outcome = heats[first : first + count], []
        with together(group):
            if mine < len(taken):
                with run.apart():
                    outcome = [run_heat(race.designs[taken[mine].design], taken[mine])]
        yield from gather_object(outcome)


def open_race(run: RunContext, designs: Sequence[Design] | None = None, settings: RaceSettings | None = None) -> Race:
    """The race of a run as far as it is; arguments and errors as of `run_race`."""
    path = run.folder / RACE
    begun = Race.load(path) if path.exists() else None  # maybe by a version with other defaults
    if begun is not None and designs is None and settings is None:
        run.prepare()
        return begun
    designs = run.settings.raced if designs is None else designs
    if begun is None:
        for design in designs:
            if reason := lacks_place(run.settings.backbone, design.dims):
                run.reporter.say(f"race: the design {design.name!r} is left out: {reason}.")
    designs = within_budget(run, designs, say=begun is None)
    run.prepare()
    labels = (run.splits.train + run.splits.validation).labels.tolist()
    settings = settings or run.settings.race(len(designs), labels)
    asked = Race(designs, settings, provenance={"task": run.splits.to_dict()}, versions=package_versions())
    if begun is None:
        return asked
    if (begun.designs, begun.settings) != (asked.designs, asked.settings):
        raise ValueError(f"{path} is of a race with other designs or settings. Choose another --output.")
    return begun


def within_budget(run: RunContext, designs: Sequence[Design], *, say: bool = True) -> list[Design]:
    """The designs that the backbone has a place for, and whose parameters are within the budget of a run, if it has one.

    Args:
        run: the run.
        designs: all of them.
        say: whether to say how many are within the budget, before a race.

    Raises:
        BudgetError: none is.
    """
    designs = [design for design in designs if not lacks_place(run.settings.backbone, design.dims)]
    budget = run.settings.budget
    if budget is None:
        return designs
    sizes = [count_trainable(add_design(run.frozen_backbone(), one, run.settings.recipe))[0] for one in designs]
    said = "; ".join(f"{design.name}: {size:,}" for design, size in zip(designs, sizes, strict=True))
    fitting = [design for design, size in zip(designs, sizes, strict=True) if size <= budget]
    if not fitting:
        raise BudgetError(
            f"no design of the race fits a budget of {budget:,} parameters: {said}. Raise the budget, or give --strategy noah."
        )
    if say and len(fitting) < len(designs):
        run.reporter.say(
            f"race: {len(fitting)} of {len(designs)} designs fit the budget of {budget:,} parameters: {said}."
        )
    return fitting


def _run_elsewhere(run: RunContext, race: Race, heats: Sequence[Heat], map: Callable) -> Iterator[tuple]:
    """Scores and notes of heats that other machines run; what they leave is written to the run folder."""
    packed = [pack_heat(run, race, heat) for heat in heats]
    for heat, done in zip(heats, map(run_heat, packed), strict=True):
        run.on_main(unpack_heat, run, race, heat, done)
        yield done["scores"], done["notes"]


def _note_seconds(run: RunContext, seconds: float) -> None:
    """Add the seconds of a heat to those of the race."""
    try:
        seconds += run.files.seconds("race")
    except (ValueError, OSError):  # the first heat
        pass
    run.files.note_stage("race", seconds, peak_memory(run.accelerator.device))


def start_winner(run: RunContext, race: Race | None = None) -> PeftModel:
    """The winner with the mean of its folds' weights, to be trained on; ``race`` is that of the run where it is None.

    Where no heat was run, it is the default design at its start.
    """
    race = run_race(run) if race is None else race
    design = race.designs[race.winner]
    model = add_design(run.frozen_backbone(), design, run.settings.recipe)
    if not race.told:
        return model
    set_mean(model, [load_file(weights_file(run, design, fold)) for fold in range(race.settings.folds)])
    return model


def passes_spent(race: Race) -> tuple[int, int]:
    """Passes of images through the backbone in all heats of a race: of trainings, and of scores."""
    last = {(heat.design, heat.fold): notes for heat, notes in race.notes.items()}  # told rung by rung
    return sum(notes["trained"] for notes in last.values()), sum(notes["scored"] for notes in last.values())


def epochs_left(run: RunContext, race: Race) -> int:
    """For how many epochs the winner is trained on, so that all of it costs what the run's effort says."""
    epochs, images = run.settings.epochs, len(run.splits.train) + len(run.splits.validation)
    return winner_epochs(run.settings.race_effort, sum(passes_spent(race)) / (2 * epochs * images), epochs)


def describe_cost(run: RunContext, race: Race) -> str:
    """What a race and its winner have cost, in one sentence."""
    epochs, images = run.settings.epochs, len(run.splits.train) + len(run.splits.validation)
    trained, scored = (passes / (2 * epochs * images) for passes in passes_spent(race))
    winner, what = epochs_left(run, race) / epochs, run.splits.what
    return (
        f"race: cost {trained + scored + winner:.2f} fine-tunes of {epochs} epochs on all labelled {what}s, by {what} passes: "
        f"heats {trained:.2f}, scores {scored:.2f}, winner {winner:.2f}."
    )


def out_of_fold_accuracy(race: Race) -> tuple[float | None, int]:
    """Share of all labelled images that the winner predicted right when it was last scored, each by a model that had not
    seen it; and the number of images. (None, 0) where no heat was run."""
    if not race.told:
        return None, 0
    rung = race.rung - 1
    heats = [Heat(race.winner, fold, rung) for fold in range(race.settings.folds)]
    sizes = [len(race.told[heat]) for heat in heats]
    right = sum(race.notes[heat]["accuracy"] * size for heat, size in zip(heats, sizes, strict=True))
    return right / sum(sizes), sum(sizes)
