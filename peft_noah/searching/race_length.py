"""How long the rungs of a race and its winner are trained, for a given cost.

The unit of cost is a full training on all labelled images, a fine-tune, counted in passes of images through the backbone: two
for an image that is trained on, forward and backward, and one for an image that is scored. So with k folds

    cost = sum over rungs of designs * (share * (k - 1) + 1 / (2 epochs)) + the winner's epochs / epochs
"""

from __future__ import annotations

from collections.abc import Sequence

from peft_noah.searching.race import RaceSettings, Rung

#: what a race costs where nothing is asked, in fine-tunes
EFFORT = 2.0
#: rungs that are tried in turn, for less and less effort; all are made longer or shorter alike
SHAPES = (RaceSettings().rungs, (Rung(3, 0.10), Rung(2, 0.14)), (Rung(2, 0.16),))
#: rungs shorter than this, as a share of those above, tell too little: fewer designs take part then
SHORTEST = 0.5


def winner_share(effort: float) -> float:
    """How long the winner is trained on at least, in full trainings: 0.9 of one, and more where a race may cost more than
    two."""
    return 0.9 * max(1.0, effort / EFFORT)


def rungs_within(effort: float, epochs: int, designs: int) -> tuple[Rung, ...]:
    """The rungs of a race that costs at most ``effort`` with its winner.

    Args:
        effort: in fine-tunes, 1 or more.
        epochs: of a full training.
        designs: how many there are.

    Returns:
        One rung of one design where there is too little for a race: the default design alone is trained.
    """
    left = effort - winner_share(effort)
    for shape in SHAPES:
        rungs = [Rung(min(rung.designs, designs), rung.share) for rung in shape]
        scores = sum(rung.designs for rung in rungs) / (2 * epochs)
        longer = (left - scores) / sum(rung.designs * rung.share for rung in rungs)
        if designs > 1 and longer >= SHORTEST:
            return tuple(Rung(rung.designs, rung.share * longer) for rung in rungs)
    return (Rung(1, 1.0),)


def heats_cost(rungs: Sequence[Rung], epochs: int) -> float:
    """What the heats of two folds cost, with their scores, in fine-tunes; 0 where one design is left alone."""
    if rungs[0].designs == 1:
        return 0.0
    return sum(rung.designs * (rung.share + 1 / (2 * epochs)) for rung in rungs)


def winner_epochs(effort: float, spent: float, epochs: int) -> int:
    """For how many epochs the winner may be trained on after a race that has cost ``spent``, in fine-tunes; at least one."""
    return max(1, int((effort - spent) * epochs + 1e-6))
