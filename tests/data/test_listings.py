"""Shots are drawn by class and by seed from any labelled dataset, and no number is made up where images are few."""

from __future__ import annotations

from collections import Counter

import pytest
from image_files import refused, rows, write_split, write_task

from peft_noah.data import Listing, Listings, load_splits, read_listings

pytest_plugins = ["image_fixtures"]


def listings(counts, validation=None):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = [{"bytes": None, "path": str(number)} for number in range(len(labels))]
    train = Listing(images, labels)
    return Listings(train, validation, train, tuple("abc"), "here")


def paths(listing):
    return [image["path"] for image in listing.images]


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_so_many_images_of_every_class_are_drawn_by_the_seed_alone(shots):
    task = listings([9, 9, 9])
    drawn = task.with_shots(shots, seed=1)
    assert Counter(drawn.train.labels) == {0: shots, 1: shots, 2: shots}
    assert paths(drawn.train) == paths(task.with_shots(shots, seed=1).train)
    assert paths(drawn.train) != paths(task.with_shots(shots, seed=2).train)
    assert all(
        task.train.labels[int(path)] == label
        for path, label in zip(paths(drawn.train), drawn.train.labels, strict=True)
    )


def test_the_validation_split_stays_as_it_is():
    validation = Listing([None] * 3, [0, 1, 2])
    assert listings([9, 9, 9], validation).with_shots(1).validation is validation


def test_a_missing_validation_split_takes_images_that_are_not_among_the_shots(caplog):
    drawn = listings([40, 3, 8]).with_shots(6)
    assert Counter(drawn.validation.labels) == {0: 4, 2: 2}
    assert not set(paths(drawn.validation)) & set(paths(drawn.train))
    assert "1 classes have fewer than 6 training images; all they have are used" in caplog.text
    assert Counter(drawn.train.labels) == {0: 6, 1: 3, 2: 6}


def test_images_drawn_twice_keep_the_numbers_they_have_in_the_file():
    task = listings([9, 9, 9]).with_validation(0.5).with_shots(2)
    assert paths(task.train) == [str(row) for row in task.train.images.indices]


def test_shots_are_drawn_from_parquet(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", ("validation", "test"))
    write_split(task, "train.parquet", rows(12), [0, 1, 2] * 4)
    splits = load_splits(task, preprocessing, shots=2, seed=5)
    assert Counter(splits.train.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert len(splits.validation) == 6
    assert splits.fingerprint == load_splits(task, preprocessing, shots=2, seed=5).fingerprint
    assert splits.fingerprint != load_splits(task, preprocessing, shots=2, seed=6).fingerprint


@pytest.mark.parametrize("shots", [0, -1, 1.5, True, "4"])
def test_shots_below_one_are_refused(tmp_path, preprocessing, shots):
    refused(
        write_task(tmp_path / "task"), preprocessing, f"shots is {shots!r}; give a whole number from 1", shots=shots
    )


def test_listings_say_sizes_and_classes_without_decoding(tmp_path):
    task = write_task(tmp_path / "task", ("validation", "test"))
    write_split(task, "train.parquet", [{"bytes": b"no image", "path": None}] * 3, [0, 1, 2])
    found = read_listings(task)
    assert found.sizes == {"train": 3, "validation": 6, "test": 6}
    assert found.label_names == ("cat", "dog", "owl")
