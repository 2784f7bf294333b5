"""The folds of a race hold every image once, and classes alike."""

from collections import Counter

from peft_noah.searching.folds import can_score, cut_folds, folds_for


def test_folds_hold_every_image_once_and_every_class_alike():
    labels = [0] * 9 + [1] * 5 + [2]
    folds = cut_folds(labels, 2, seed=3)
    assert sorted(row for fold in folds for row in fold) == list(range(15))
    assert sorted(map(len, folds)) == [7, 8]
    for label, count in Counter(labels).items():
        assert all(abs(sum(labels[row] == label for row in fold) - count / 2) <= 0.5 for fold in folds)
    assert cut_folds(labels, 2, seed=3) == folds != cut_folds(labels, 2, seed=4)


def test_few_images_a_class_get_more_folds():
    assert [folds_for([0, 1] * images) for images in (8, 4, 3, 1)] == [2, 4, 3, 2]


def test_folds_tell_nothing_where_most_images_are_of_classes_that_their_model_has_not_seen():
    assert not can_score(range(40)) and not can_score([0, 1, 2, 3, 3])
    assert can_score([0, 1, 2, 2]) and can_score([0, 0, 1, 1])
