"""The folds of a race hold every image once, and classes alike."""

from collections import Counter

import pytest

from peft_noah.searching.folds import cut_folds, with_folds_for
from peft_noah.searching.race import RaceSettings


def test_folds_hold_every_image_once_and_every_class_alike():
    labels = [0] * 9 + [1] * 5 + [2]
    folds = cut_folds(labels, 2, seed=3)
    assert sorted(row for fold in folds for row in fold) == list(range(15))
    assert sorted(map(len, folds)) == [7, 8]
    for label, count in Counter(labels).items():
        assert all(abs(sum(labels[row] == label for row in fold) - count / 2) <= 0.5 for fold in folds)
    assert cut_folds(labels, 2, seed=3) == folds != cut_folds(labels, 2, seed=4)


def test_few_images_a_class_get_more_folds_at_the_same_cost():
    plain = RaceSettings()
    assert with_folds_for(plain, [0, 1] * 8) is plain
    few = with_folds_for(plain, [0, 1] * 4)
    assert few.folds == 4 and few.rungs[0].share == pytest.approx(plain.rungs[0].share / 3)
    assert with_folds_for(plain, [0, 1]).folds == 2
