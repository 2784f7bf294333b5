"""How long the rungs of a race and its winner are trained, for a given cost.

The unit of cost is a full training on all labelled images, a fine-tune, counted in passes of images through the backbone: two
for an image that is trained on, forward and backward, and one for an image that is scored. So with k folds

    cost = sum over rungs of designs * (share * (k - 1) + 1 / (2 epochs)) + the winner's epochs / epochs

A first rung that is too short misleads: after a few steps the strongest update is ahead, or nothing has been learnt at all. So it
has some steps at least, and where these are dear, because a full training has few, fewer designs take part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from peft_noah.searching.race import RaceSettings, Rung

#: what a race costs where nothing is asked, in fine-tunes
EFFORT = 2.0
#: rungs that are tried in turn, with shares for two folds and an effort of 2
SHAPES = (
    RaceSettings().rungs,
    (Rung(4, 0.10), Rung(2, 0.10)),
    (Rung(3, 0.12), Rung(2, 0.12)),
    (Rung(2, 0.16),),
)
#: steps that each model is trained for in the first rung, at least
FEWEST_STEPS = 24
#: images of a task where their number is not known yet: VTAB-1k's
IMAGES = 1000


def winner_share(effort: float) -> float:
    """How long the winner is trained on at least, in full trainings: 0.9 of one, and more where a race may cost more than
    two."""
    return 0.9 * max(1.0, effort / EFFORT)


def rungs_within(
    effort: float, epochs: int, designs: int, *, images: int = IMAGES, folds: int = 2, batch_size: int = 64
) -> tuple[Rung, ...]:
    """The rungs of a race that costs at most ``effort`` with its winner.

    The first of `SHAPES` is taken that fits into the effort when its first rung has `FEWEST_STEPS`. Its rungs grow and shrink with
    the effort, but for this. What they leave of it is the winner's.

    Args:
        effort: in fine-tunes, 1 or more.
        epochs: of a full training.
        designs: how many there are.
        images: labelled ones, of all folds.
        folds: into how many parts they are cut.
        batch_size: images of a step.

    Returns:
        One rung of one design where there is too little for a race: the default design alone is trained.
    """
    alone = (Rung(1, 1.0),)
    if min(designs, images) < 2:
        return alone
    left = effort - winner_share(effort)
    steps_per_epoch = math.ceil((images - math.ceil(images / folds)) / batch_size)  # beside the largest fold
    for shape in SHAPES:
        rungs = [Rung(min(rung.designs, designs), rung.share / (folds - 1)) for rung in shape]
        longer = max(effort / EFFORT, FEWEST_STEPS / (rungs[0].share * epochs * steps_per_epoch))
        rungs = [Rung(rung.designs, rung.share * longer) for rung in rungs]
        if heats_cost(rungs, epochs, folds) <= left + 1e-9:
            return tuple(rungs)
    return alone


def heats_cost(rungs: Sequence[Rung], epochs: int, folds: int = 2) -> float:
    """What the heats cost, with their scores, in fine-tunes; 0 where one design is left alone."""
    if rungs[0].designs == 1:
        return 0.0
    return sum(rung.designs * (rung.share * (folds - 1) + 1 / (2 * epochs)) for rung in rungs)


def winner_epochs(effort: float, spent: float, epochs: int) -> int:
    """For how many epochs the winner may be trained on after a race that has cost ``spent``, in fine-tunes; at least one."""
    return max(1, int((effort - spent) * epochs + 1e-6))
