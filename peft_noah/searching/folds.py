"""The folds of a race: which labelled images score a design that was trained on the others."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

#: images of a typical class below which two folds would leave it too few to learn from
FEW = 8


def cut_folds(labels: Sequence[int], folds: int, seed: int) -> list[list[int]]:
    """Rows of each fold: of every class equally many, as far as they go.

    Args:
        labels: class index of each image.
        folds: how many.
        seed: of the random cut.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        by_class[label].append(row)
    rng, cut, turn = random.Random(seed), [[] for _ in range(folds)], 0
    for label in sorted(by_class):
        rows = by_class[label]
        rng.shuffle(rows)
        for row in rows:  # the next class begins where this one ended, so that folds are equally large
            cut[turn % folds].append(row)
            turn += 1
    return [sorted(rows) for rows in cut]


def can_score(labels: Sequence[int]) -> bool:
    """Whether folds can tell designs apart: no model has seen the class of an image that is the only one of its class, so not
    where most are."""
    alone = sum(count == 1 for count in Counter(labels).values())
    return 2 * alone <= len(labels)


def folds_for(labels: Sequence[int]) -> int:
    """Into how many folds these labelled images are cut: two, and more where classes have few images.

    With k folds a model sees (k - 1) / k of the images, and there are k models.
    """
    counts = sorted(Counter(labels).values())
    typical = counts[len(counts) // 2]
    if typical >= FEW:
        return 2
    return 4 if typical >= 4 else max(2, typical)
