"""Datasets are found in parquet, image folders and on the Hub; what is missing or ambiguous is said clearly."""

from __future__ import annotations

import socket
from pathlib import Path

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image, Value
from image_files import NAMES, encode, pixels, refused, rows, whole, write_image_folder, write_split, write_task

from peft_noah.data import Preprocessing, bundled_backbone, bundled_task, load_splits
from peft_noah.experiments.result_files import load_reports

pytest_plugins = ["image_fixtures"]
ROOT = Path(__file__).parents[2]


def test_the_bundled_task_has_800_200_and_2000_images_of_10_classes(preprocessing):
    splits = load_splits(bundled_task(), preprocessing)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (800, 200, 2000)
    assert splits.num_classes == 10
    assert splits.label_names[:3] == ("t-shirt", "trouser", "pullover")
    committed = load_reports(ROOT / "results" / "fashion_mnist" / "runs.jsonl")[0]
    assert splits.fingerprint == committed.task["fingerprint"]
    assert (bundled_task() / "LICENSE").read_text().startswith("The MIT License")
    assert bundled_backbone().parent == bundled_task().parent


def test_an_image_folder_equals_the_same_images_in_parquet(tmp_path, preprocessing):
    folder = write_image_folder(tmp_path / "folder")
    splits = load_splits(folder, preprocessing)
    assert splits.label_names == ("ant", "owl")
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    images = [{"bytes": encode(pixels(seed)), "path": None} for seed in (10, 11, 0, 1)]
    write_split(tmp_path / "parquet", "train.parquet", images, [0, 0, 1, 1], ClassLabel(names=["ant", "owl"]))
    write_split(tmp_path / "parquet", "test.parquet", images, [0, 0, 1, 1], ClassLabel(names=["ant", "owl"]))
    other = load_splits(tmp_path / "parquet", preprocessing, validation_split=None)
    assert torch.equal(whole(splits.train), whole(other.test))


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "dev"])
def test_validation_is_found_under_its_usual_names(tmp_path, preprocessing, validation):
    splits = load_splits(write_image_folder(tmp_path / "folder", validation), preprocessing)
    assert torch.equal(splits.validation[0]["pixel_values"], preprocessing.apply(PIL.Image.fromarray(pixels(110))))


def test_a_folder_named_train_below_test_stays_in_test(tmp_path, preprocessing):
    splits = load_splits(write_image_folder(tmp_path / "[a] folder", classes=("train", "test")), preprocessing)
    assert (len(splits.train), len(splits.test)) == (4, 4)
    assert splits.label_names == ("test", "train")


def test_shards_in_a_data_folder_are_read_in_order(tmp_path, preprocessing):
    task = write_task(tmp_path / "[my] task*", ("validation", "test"))
    write_split(task / "data", "train-00000-of-00002.parquet", rows(3), [0, 1, 2])
    write_split(task / "data", "train-00001-of-00002.parquet", rows(3, 3), [2, 1, 0])
    splits = load_splits(task, preprocessing)
    assert splits.train.labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert torch.equal(splits.train[3]["pixel_values"], preprocessing.apply(PIL.Image.fromarray(pixels(3))))


def test_other_split_and_column_names_can_be_given(tmp_path, preprocessing):
    features = Features(
        {"photo": Image(), "thumb": Image(), "fine": ClassLabel(names=NAMES), "coarse": Value("int64")}
    )
    for position, split in enumerate(("train800", "val200", "held_out")):
        table = {"photo": rows(3, 10 * position), "thumb": rows(3, 90), "fine": [0, 1, 2], "coarse": [5, 5, 7]}
        (tmp_path / "task").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "task" / f"{split}.parquet")
    names = {"train_split": "train800", "validation_split": "val200", "test_split": "held_out"}
    splits = load_splits(tmp_path / "task", preprocessing, image_column="photo", label_column="coarse", **names)
    assert splits.label_names == ("5", "7")
    assert splits.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(splits.test[0]["pixel_values"], preprocessing.apply(PIL.Image.fromarray(pixels(20))))


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        (Value("int64"), (10, 9, 2), ("2", "9", "10")),
        (Value("string"), ("b", "c", "a"), ("a", "b", "c")),
        (Value("bool"), (True, False, True), ("False", "True")),
    ],
)
def test_labels_without_names_are_numbered_alike_in_all_splits(tmp_path, preprocessing, feature, labels, names):
    task = write_task(tmp_path / "task", ("train", "validation"), feature, labels)
    write_split(task, "test.parquet", rows(1), [labels[0]], feature)
    splits = load_splits(task, preprocessing)
    assert splits.label_names == names
    assert splits.test.labels.tolist() == [names.index(str(labels[0]))]
    assert splits.train.labels[0] == splits.test.labels[0]


def test_parquet_written_without_datasets_is_understood(tmp_path, preprocessing):
    for split in ("train", "validation", "test"):
        table = pa.table({"image": rows(3), "label": [0, 1, 1]})
        assert table.schema.metadata is None
        pq.write_table(table, tmp_path / f"{split}.parquet")
    splits = load_splits(tmp_path, preprocessing)
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert torch.equal(splits.train[1]["pixel_values"], preprocessing.apply(PIL.Image.fromarray(pixels(1))))


@pytest.mark.parametrize("kind", ["parquet", "images"])
def test_local_data_needs_no_network_and_draws_no_progress_bars(tmp_path, backbone_config, monkeypatch, capfd, kind):
    task = write_task(tmp_path / "task") if kind == "parquet" else write_image_folder(tmp_path / "task")
    used = []

    def refuse(*arguments, **_):
        used.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    capfd.readouterr()
    load_splits(task, Preprocessing.from_backbone(backbone_config))
    assert used == []  # datasets swallows a failed request, so the result alone would not show it
    assert capfd.readouterr().err == ""


def test_progress_bars_are_left_as_they_were(tmp_path, preprocessing):
    assert not datasets.are_progress_bars_disabled()
    load_splits(write_task(tmp_path / "task"), preprocessing)
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "a/b/c", "~/missing here"])
def test_a_folder_that_does_not_exist_is_refused_at_once(preprocessing, source):
    refused(source, preprocessing, f"there is no folder '{source}'")
    refused(Path(source), preprocessing, "there is no folder")


def test_a_single_file_is_no_folder_of_images_and_may_be_one_of_texts(preprocessing, tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\ngood,1\n")
    refused(tmp_path / "reviews.csv", preprocessing, "is a file, .* needs --task text-classification")


def test_a_hub_dataset_that_cannot_be_reached_is_refused(preprocessing, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused("someone/pets", preprocessing, r"someone/pets \(no folder here, so a Hub id\): Couldn't reach the Hub")


def test_a_folder_without_data_is_refused(tmp_path, preprocessing):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", preprocessing, "holds neither parquet files nor folders of images")


def test_a_missing_training_split_is_refused_and_the_others_named(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", ("validation", "test"))
    refused(task, preprocessing, "has no split 'train'; it has test, validation")


def test_a_missing_test_split_is_none_and_said(tmp_path, preprocessing):
    splits = load_splits(write_task(tmp_path / "task", ("train", "validation")), preprocessing)
    assert splits.test is None and len(splits.validation) == 6
    assert splits.notes == ("there are no labelled test images, so there is no test accuracy",)
    refused(tmp_path / "task", preprocessing, "has no split 'held_out'; it has train", test_split="held_out")


@pytest.mark.parametrize("label", [-1, None])
def test_test_labels_that_are_all_withheld_are_no_test_split(tmp_path, preprocessing, label):
    task = write_task(tmp_path / "task", ("train", "validation"))
    write_split(task, "test.parquet", rows(3), [label] * 3)
    splits = load_splits(task, preprocessing)
    assert splits.test is None
    assert splits.notes[0] == "the labels of all 3 test images are missing or -1"


def test_a_test_split_without_a_column_of_labels_is_no_test_split(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", ("train", "validation"))
    unlabelled = datasets.Dataset.from_dict({"image": rows(3)}, features=Features({"image": Image()}))
    unlabelled.to_parquet(task / "test.parquet")
    assert load_splits(task, preprocessing).test is None


def test_validation_labels_that_are_all_withheld_are_no_validation_split(tmp_path, preprocessing):
    task = write_task(tmp_path / "task")
    write_split(task, "validation.parquet", rows(3), [-1] * 3)
    splits = load_splits(task, preprocessing)
    assert len(splits.validation) == 3 and len(splits.train) == 3
    assert "no validation split; 3 of 6 training images" in splits.notes[1]


def test_a_validation_split_named_on_purpose_must_be_there(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", ("train", "test"))
    refused(task, preprocessing, "has no split 'val200'", validation_split="val200")


def test_the_test_split_cannot_be_the_training_split(tmp_path, preprocessing):
    refused(write_task(tmp_path / "task"), preprocessing, "not three different ones", test_split="train")


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_an_empty_split_is_refused(tmp_path, preprocessing, empty):
    task = write_task(tmp_path / "task")
    write_split(task, f"{empty}.parquet", [], [])
    refused(task, preprocessing, f"the {empty} split of .* is empty")


def test_an_empty_split_of_an_image_folder_is_refused(tmp_path, preprocessing):
    folder = write_image_folder(tmp_path / "folder")
    for file in (folder / "test").glob("*/*.png"):
        file.unlink()
    (folder / "test" / "owl" / "notes.txt").write_text("")
    refused(folder, preprocessing, "the test split of .*folder is empty")


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (
            {"image": Image(), "score": Value("float32")},
            {},
            r"no single column of labels; its columns are image \(Image",
        ),
        ({"image": Image(), "label": Value("int64")}, {"label_column": "class"}, "no column 'class'; .* label_column"),
        ({"image": Image(), "label": Value("float64")}, {}, "holds float64: allowed are class labels"),
        ({"label": ClassLabel(names=NAMES)}, {}, r"no column of encoded images; its columns are label \(ClassLabel\)"),
        ({"photo": Image(), "other": Image(), "label": Value("int64")}, {}, "2 columns of images; .* image_column"),
        ({"image": Image(), "label": Value("int64")}, {"image_column": "photo"}, "no column 'photo'; .* image_column"),
        ({"image": Image(), "label": Value("int64")}, {"image_column": "label"}, "no column of encoded images"),
        (
            {"image": Image(), "fine": ClassLabel(names=NAMES), "coarse": ClassLabel(names=NAMES)},
            {},
            "no single column",
        ),
        ({"image": datasets.List(Value("float32")), "label": Value("int64")}, {}, "no column of encoded images"),
    ],
)
def test_columns_that_are_missing_or_ambiguous_are_refused(tmp_path, preprocessing, features, options, message):
    samples = {"Image": rows(1)[0], "ClassLabel": 1, "List": [float("nan")], "Value": 1}
    row = {name: samples[type(feature).__name__] for name, feature in features.items()}
    for split in ("train", "validation", "test"):
        table = datasets.Dataset.from_list([row], features=Features(features))
        table.to_parquet(tmp_path / f"{split}.parquet")
    refused(tmp_path, preprocessing, message, **options)


def test_an_integer_label_of_minus_1_is_no_class(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", label_feature=Value("int64"), labels=(3, -1, 5))
    refused(task, preprocessing, "image 1 of the train split of .* has the label -1")


def test_an_integer_label_that_training_lacks_is_refused(tmp_path, preprocessing):
    task = write_task(tmp_path / "task", label_feature=Value("int64"), labels=(3, 4, 5))
    write_split(task, "test.parquet", rows(2), [3, 6], Value("int64"))
    refused(task, preprocessing, "the test split has the label 6, which no training image has")
    write_split(task, "test.parquet", rows(2), [3, -1], Value("int64"))
    refused(task, preprocessing, "image 1 of the test split of .* has the label -1")


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (ClassLabel(names=["cat", "owl", "dog"]), "class 1 is 'owl' against 'dog'"),
        (ClassLabel(names=["cat", "dog"]), "class 2 is None against 'owl'"),
        (Value("int64"), "int64 against ClassLabel"),
    ],
)
def test_label_names_that_differ_over_splits_are_refused(tmp_path, preprocessing, feature, message):
    task = write_task(tmp_path / "task")
    write_split(task, "test.parquet", rows(2), [0, 1], feature)
    refused(task, preprocessing, f"labels of the test split differ from those of the train split: {message}")


def test_a_misspelt_class_folder_is_refused(tmp_path, preprocessing):
    folder = write_image_folder(tmp_path / "folder")
    (folder / "test" / "owl").rename(folder / "test" / "owls")
    refused(folder, preprocessing, "the test split of .* has the class folder 'owls', which the training images lack")


def test_a_corrupt_file_of_an_image_folder_is_named_by_its_path(tmp_path, preprocessing):
    folder = write_image_folder(tmp_path / "folder")
    file = folder / "train" / "owl" / "0.png"
    file.write_bytes(file.read_bytes()[:60])
    refused(folder, preprocessing, rf"image 2 of split 'train' \({file}\) cannot be used")


def test_a_parquet_file_cut_short_is_refused(tmp_path, preprocessing):
    task = write_task(tmp_path / "task")
    content = (task / "test.parquet").read_bytes()
    (task / "test.parquet").write_bytes(content[: len(content) // 2])
    refused(task, preprocessing, "cannot read the dataset .*task: .*[Pp]arquet")


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, preprocessing, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    refused(
        write_task(tmp_path / "task"), preprocessing, "cannot write its cache, .*file/cache. Set HF_DATASETS_CACHE"
    )
