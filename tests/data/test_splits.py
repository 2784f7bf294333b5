"""Splits hold checked labels, a validation split where there was none, and a record of where they came from."""

from __future__ import annotations

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value
from image_files import NAMES, SIDE, refused, rows, whole, write_image_folder, write_split, write_task, write_vtab_task

from peft_noah.data import load_splits

pytest_plugins = ["image_fixtures"]


def test_the_cache_serves_train_before_validation_before_test(tmp_path, preprocessing):
    one_split = 6 * 3 * SIDE * SIDE / 1e9
    splits = load_splits(write_task(tmp_path / "task"), preprocessing, cache_gb=2.5 * one_split)
    assert (splits.train.in_memory, splits.validation.in_memory, splits.test.in_memory) == (True, True, False)


def test_a_missing_validation_split_is_split_off_class_by_class_and_said(tmp_path, preprocessing, caplog):
    task = write_task(tmp_path / "task", ("test",))
    write_split(task, "train.parquet", rows(31), [0] * 10 + [1] * 20 + [2])
    with caplog.at_level(logging.WARNING):
        splits = load_splits(task, preprocessing, validation_fraction=0.2, seed=3)
    assert torch.bincount(splits.validation.labels, minlength=3).tolist() == [2, 4, 0]
    assert torch.bincount(splits.train.labels).tolist() == [8, 16, 1]
    assert "6 of 31 training images were split off" in caplog.text
    again = load_splits(task, preprocessing, seed=3)
    other = load_splits(task, preprocessing, seed=4)
    assert torch.equal(whole(again.validation), whole(splits.validation))
    assert not torch.equal(whole(other.validation), whole(splits.validation))
    together = {image.numpy().tobytes() for image in whole(splits.train + splits.validation)}
    assert len(together) == 31


def test_a_class_without_training_images_is_said(tmp_path, preprocessing, caplog):
    task = write_task(tmp_path / "task", ("validation", "test"))
    write_split(task, "train.parquet", rows(2), [0, 1])
    splits = load_splits(task, preprocessing)
    assert splits.num_classes == 3
    assert "1 classes of the test split have no training image (owl)" in caplog.text


def test_the_record_of_a_task_is_plain_data(tmp_path, preprocessing):
    record = load_splits(write_task(tmp_path / "task"), preprocessing).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["sizes"] == {"train": 6, "validation": 6, "test": 6}
    assert record["label_names"] == NAMES
    assert record["preprocessing"]["size"] == [SIDE, SIDE]


def test_one_class_is_refused(tmp_path, preprocessing):
    refused(write_task(tmp_path / "a", labels=(1, 1, 1)), preprocessing, "have one class only, 'dog'")
    refused(write_image_folder(tmp_path / "b", classes=("cat",)), preprocessing, "have one class only, 'cat'")
    refused(write_task(tmp_path / "c", label_feature=Value("int64"), labels=(7,) * 3), preprocessing, "only, '7'")


@pytest.mark.parametrize("label", [-1, 3, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_out_of_range_is_refused_with_its_index(tmp_path, preprocessing, label, split):
    task = write_task(tmp_path / "task")
    # ClassLabel itself refuses to write 3, so the values go in as plain integers below the schema of ClassLabel.
    table = pq.read_table(task / f"{split}.parquet")
    labels = pa.array([0, 1, 2, 0, label, 2], type=pa.int64())
    pq.write_table(
        table.set_column(1, "label", labels).replace_schema_metadata(table.schema.metadata), task / f"{split}.parquet"
    )
    refused(task, preprocessing, f"image 4 of the {split} split of .* has the label {label}.*: allowed are 0 to 2")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, float("nan")])
def test_a_validation_fraction_outside_0_and_1_is_refused(tmp_path, preprocessing, fraction):
    task = write_task(tmp_path / "task", ("train", "test"))
    refused(task, preprocessing, "give a share between 0 and 1", validation_fraction=fraction)


def test_one_image_per_class_cannot_give_a_validation_split(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", ("test",))
    write_split(task, "train.parquet", rows(3), [0, 1, 2])
    refused(task, preprocessing, "one training image per class, so none can be split off")


def test_a_broken_image_keeps_its_number_where_validation_was_split_off(tmp_path, preprocessing):
    for broken in range(6):
        images = rows(6)
        images[broken] = {"bytes": b"no image", "path": None}
        task = write_task(tmp_path / str(broken), ("test",))
        write_split(task, "train.parquet", images, [0, 0, 0, 1, 1, 1])
        refused(task, preprocessing, f"image {broken} of split 'train' cannot be used", validation_fraction=0.5)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_fingerprint_changes_with_any_split(tmp_path, preprocessing, split):
    before = load_splits(write_task(tmp_path / "task"), preprocessing).fingerprint
    write_split(tmp_path / "task", f"{split}.parquet", rows(6, 50), [0, 1, 2] * 2)
    assert load_splits(tmp_path / "task", preprocessing).fingerprint != before


def test_test_images_that_are_also_in_training_are_counted_and_said_once(tmp_path, preprocessing, caplog):
    task = write_task(tmp_path / "task", ("train", "validation"))
    write_split(task, "test.parquet", [*rows(2), *rows(1, 10), *rows(3, 70)], [0, 1, 2] * 2)
    for cache_gb in (4.0, 0.0):
        caplog.clear()
        splits = load_splits(task, preprocessing, cache_gb=cache_gb)
        assert splits.shared == {"test": 3}  # two of training, one of validation, which is trained on in the end
        assert splits.to_dict()["shared"] == {"test": 3}
        assert caplog.text.count("byte for byte") == 1
        assert "3 of 6 test" in caplog.text
    assert "shared" not in load_splits(write_task(tmp_path / "other"), preprocessing).to_dict()


def test_an_image_of_a_list_that_is_in_two_splits_is_counted(tmp_path, preprocessing, caplog):
    task = write_vtab_task(tmp_path / "cifar")
    for name in ("val200.txt", "test.txt"):
        with open(task / name, "a") as file:
            file.write("images/train/000000.png 0\n")
    assert load_splits(task, preprocessing).shared == {"validation": 1, "test": 1}
    assert "1 of 4 validation, 1 of 4 test" in caplog.text
