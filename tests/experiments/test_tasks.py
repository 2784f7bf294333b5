"""A task's folder is compared with what the paper says it holds, without decoding, and a mismatch says which number."""

from __future__ import annotations

import datasets
import pytest
from datasets import Value
from image_files import encode, lines_of, pixels, rows, write_few_shot_task, write_list, write_split, write_vtab_task

from peft_noah.experiments.detection import detect_tasks
from peft_noah.experiments.protocols import vtab_tasks
from peft_noah.experiments.tasks import Task

pytest_plugins = ["image_fixtures"]
SIZES = {"train": 6, "validation": 3, "test": 3}


def task(folder, **fields):
    return Task("cifar100", str(folder), **{"num_classes": 3, "sizes": SIZES, **fields})


def test_a_task_that_is_as_expected_gives_its_listings(tmp_path):
    folder = write_vtab_task(tmp_path / "cifar")
    for image in folder.rglob("*.png"):
        image.write_bytes(b"no image")  # nothing is decoded
    assert task(folder).check().sizes == SIZES
    assert task(folder, sizes={}, num_classes=None).check().sizes == SIZES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 4}, "task 'cifar100' in .*cifar has 3 classes where 4 are expected"),
        ({"sizes": {**SIZES, "test": 10_000}}, "has 3 test images where 10,000 are expected"),
        (
            {"sizes": {"train": 800, "validation": 200}},
            "6 train images where 800 .*; 3 validation images where 200 are",
        ),
        ({"sizes": {"test v2": 10}}, "has 0 test v2 images where 10 are expected"),
        ({"num_classes": 2}, "task 'cifar100': line 3 of .*train800.txt gives .* the label 2: allowed are 0 to 1"),
        ({"dataset": "./gone"}, "task 'cifar100': there is no folder './gone'"),
    ],
)
def test_what_differs_is_said_with_the_task(tmp_path, fields, message):
    folder = write_vtab_task(tmp_path / "cifar")
    with pytest.raises(ValueError, match=message) as caught:
        Task(**{"name": "cifar100", "dataset": str(folder), "num_classes": 3, "sizes": SIZES, **fields}).check()
    assert type(caught.value) is ValueError


def test_a_number_of_classes_that_the_data_has_and_the_paper_misprints_is_accepted(tmp_path):
    folder = write_vtab_task(tmp_path / "smallnorb_ele")
    assert task(folder, num_classes=18, other_num_classes=(3,)).check().label_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="3 classes where 18 are expected"):
        task(folder, num_classes=18, other_num_classes=(9,)).check()


def test_classes_without_training_images_count(tmp_path):
    folder = write_vtab_task(tmp_path / "sun397", train=[0, 1] * 3, validation=[0, 1, 1], test=[0, 1, 2])
    task(folder).check()
    write_list(folder, "test.txt", lines_of("test", [0, 1, 1]))
    with pytest.raises(ValueError, match="2 classes where 3 are expected"):
        task(folder).check()


def test_a_validation_split_made_from_all_1000_images_counts_with_them(tmp_path):
    folder = write_vtab_task(tmp_path / "cifar", without=("train800.txt", "val200.txt"))
    task(folder).check()
    with pytest.raises(ValueError, match="9 train images where 1,000 are expected"):
        task(folder, sizes={"train": 800, "validation": 200}).check()


def test_parquet_with_numbers_for_labels_is_counted_by_its_largest(tmp_path):
    for split, labels in (("train800", [0, 1, 0]), ("val200", [1, 0, 1]), ("test", [0, 1, 2])):
        write_split(tmp_path / "sun397", f"{split}.parquet", rows(3), labels, Value("int64"))
    sizes = dict.fromkeys(SIZES, 3)
    assert task(tmp_path / "sun397", sizes=sizes).check().test.labels == [0, 1, 2]
    with pytest.raises(ValueError, match="image 2 of the test split of .* has the label 2: allowed are 0 to 1"):
        task(tmp_path / "sun397", sizes=sizes, num_classes=2).check()
    assert isinstance(task(tmp_path / "sun397").listings().train.images, datasets.Column)


def test_shots_and_seed_choose_the_list(tmp_path):
    for name in ("food101", "pets"):
        write_few_shot_task(tmp_path / name)
    (found, _) = detect_tasks(tmp_path, shots=[2])
    listings = found.listings(seed=1)
    assert listings.sizes["train"] == 6
    with pytest.raises(
        ValueError, match="task 'food101-2shot' in .* has 3 classes where 101 are expected; 6 train images"
    ):
        found.check(seed=1)


def test_a_real_vtab_folder_is_checked_against_table_4(tmp_path):
    (found,) = vtab_tasks(write_vtab_task(tmp_path / "kitti").parent, ["kitti"])
    with pytest.raises(
        ValueError,
        match="task 'kitti' in .*kitti has 3 classes where 4 are expected; 6 train images where 800 are expected; "
        "3 validation images where 200 are expected; 3 test images where 711 are expected",
    ):
        found.check()


def test_a_jpeg_copy_of_lossless_images_is_warned_of(tmp_path, caplog):
    folder = write_vtab_task(tmp_path / "cifar")
    task(folder, lossless=True).check()
    assert caplog.text == ""
    for image in folder.rglob("*.png"):
        image.write_bytes(encode(pixels(0), "JPEG"))
    task(folder, lossless=False).check()
    assert caplog.text == ""
    task(folder, lossless=True).check()
    assert (
        "task 'cifar100': the images in" in caplog.text and "are JPEG, but the originals are lossless" in caplog.text
    )


def test_a_task_is_read_by_the_splits_that_a_suite_names(tmp_path):
    folder = write_vtab_task(tmp_path / "cifar100")
    (folder / "test.txt").rename(folder / "held_out.txt")
    assert task(folder, sizes={}).listings(test_split="held_out").test.labels == [0, 1, 2]
    assert task(folder, sizes={}).check(test_split="held_out").sizes["test"] == 3
    with pytest.raises(ValueError, match="0 test images where 3 are expected"):
        task(folder).check()
