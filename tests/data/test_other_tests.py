"""Further test sets are matched to the training classes by name or number, and scored among the classes they have."""

from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Value
from image_files import lines_of, pixels, refused, rows, write_image_folder, write_list, write_split, write_task
from torch import nn

from peft_noah.data import ImageSplit, Normalizer, load_splits, read_listings
from peft_noah.training import make_accelerator
from peft_noah.training.evaluation import evaluate

pytest_plugins = ["image_fixtures"]
WNIDS = ("n01", "n02", "n03", "n04")


@pytest.fixture
def imagenet(tmp_path):
    return write_image_folder(tmp_path / "imagenet", classes=WNIDS)


def write_class_folders(folder, classes):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        PIL.Image.fromarray(pixels(900 + number)).save(folder / name / "0.png")
    return folder


def other(imagenet, source):
    return read_listings(imagenet, other_tests={"a": source}).other_tests["a"]


@pytest.mark.parametrize("inner", ["", "imagenet-a", "images/imagenet-a", "test"])
def test_class_folders_are_matched_by_name_and_their_classes_are_those_there(tmp_path, imagenet, inner):
    write_class_folders(tmp_path / "a" / inner, ["n02", "n04"])
    (tmp_path / "a" / "README.txt").write_text("")
    listing = other(imagenet, tmp_path / "a")
    assert listing.labels == [1, 3]
    assert listing.classes == (1, 3)


def test_a_set_with_all_classes_is_scored_among_all(tmp_path, imagenet):
    assert other(imagenet, write_class_folders(tmp_path / "sketch", WNIDS)).classes is None


def test_numbered_class_folders_are_read_as_numbers_not_in_order_of_name(tmp_path):
    names = tuple(f"n{number:02d}" for number in range(12))
    imagenet = write_image_folder(tmp_path / "imagenet", classes=names)
    listing = other(imagenet, write_class_folders(tmp_path / "v2" / "matched", [str(n) for n in range(12)]))
    assert sorted(listing.labels) == list(range(12))
    assert listing.labels[2] == 10  # the folder "10" comes after "1"
    assert listing.classes is None


def test_the_authors_lists_are_read_with_their_labels(tmp_path, imagenet):
    lines = [("imagenet-a/n04/0.00_soap dispenser _ x.png", 3), ("imagenet-a/n02/b.png", 1)]
    write_list(tmp_path / "a", "annotations/val_meta.list", lines)
    listing = other(imagenet, tmp_path / "a")
    assert (listing.labels, listing.classes) == ([3, 1], (1, 3))


def test_a_list_that_numbers_the_classes_otherwise_is_refused(tmp_path, imagenet):
    write_list(tmp_path / "a", "annotations/val_meta.list", [("imagenet-a/n04/0.png", 0)])
    with pytest.raises(ValueError, match="the label 0, but the training class 'n04' has the label 3"):
        other(imagenet, tmp_path / "a")
    write_list(tmp_path / "b", "annotations/val_meta.list", [("images/0.png", 4)])
    with pytest.raises(ValueError, match="line 1 of .*val_meta.list .* label 4: allowed are 0 to 3"):
        other(imagenet, tmp_path / "b")


@pytest.mark.parametrize(
    ("feature", "labels", "file"),
    [
        (ClassLabel(names=["n02", "n04"]), [1, 0], "test.parquet"),
        (Value("string"), ["n04", "n02"], "data/validation-00000-of-00001.parquet"),
        (Value("int64"), [3, 1], "anything.parquet"),
    ],
)
def test_parquet_is_matched_by_name_or_number(tmp_path, imagenet, feature, labels, file):
    write_split((tmp_path / "a" / file).parent, file.split("/")[-1], rows(2), labels, feature)
    listing = other(imagenet, tmp_path / "a")
    assert (listing.labels, listing.classes) == ([3, 1], (1, 3))


def test_a_hub_dataset_is_read(tmp_path, imagenet, monkeypatch):
    write_split(tmp_path / "a", "test.parquet", rows(1), [0], ClassLabel(names=["n03"]))
    table = datasets.Dataset.from_parquet([str(tmp_path / "a" / "test.parquet")])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": table, "test": table})
    assert other(imagenet, "someone/imagenet-a").labels == [2]


def test_a_class_that_training_lacks_is_refused(tmp_path, imagenet):
    write_class_folders(tmp_path / "a", ["n02", "n99"])
    with pytest.raises(ValueError, match="the test set 'a', .*a, has the class 'n99', which the training images lack"):
        other(imagenet, tmp_path / "a")


def test_a_set_without_images_or_with_several_splits_is_refused(tmp_path, imagenet, preprocessing):
    (tmp_path / "a").mkdir()
    refused(imagenet, preprocessing, "the test set 'a', .* holds no images", other_tests={"a": tmp_path / "a"})
    write_task(tmp_path / "b", ("one", "two"))
    refused(imagenet, preprocessing, "the splits one, two and none is named test", other_tests={"b": tmp_path / "b"})
    refused(imagenet, preprocessing, "there is no folder './c'", other_tests={"c": "./c"})


def test_the_record_of_a_task_changes_only_where_further_test_sets_are_there(tmp_path, imagenet, preprocessing):
    plain = load_splits(imagenet, preprocessing)
    source = write_class_folders(tmp_path / "a", ["n02", "n04"])
    splits = load_splits(imagenet, preprocessing, other_tests={"a": source})
    assert plain.other_tests == {} and "other_tests" not in plain.to_dict()
    assert splits.to_dict()["other_tests"] == {"a": {"size": 2, "classes": 2}}
    assert json.loads(json.dumps(splits.to_dict())) == splits.to_dict()
    assert splits.test.fingerprint == plain.test.fingerprint
    assert splits.fingerprint != plain.fingerprint
    renamed = load_splits(imagenet, preprocessing, other_tests={"b": source})
    assert renamed.fingerprint != splits.fingerprint


class Fixed(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.logits.expand(len(pixel_values), -1))


def test_accuracy_is_taken_among_the_classes_of_the_split(preprocessing):
    images, labels = torch.zeros((4, 3, 8, 8), dtype=torch.uint8), torch.tensor([1, 1, 3, 1])
    model, accelerator = Fixed([5.0, 1.0, 9.0, 0.0]), make_accelerator()
    # Class 2 has the largest logit of all, class 1 of the classes 1 and 3.
    for classes, accuracy in ((None, 0.0), ((3, 1), 0.75), ((0, 1, 3), 0.0)):
        split = ImageSplit(images, labels, classes)
        assert evaluate(model, split, Normalizer(preprocessing), accelerator) == accuracy
    both = ImageSplit(images, labels, (1, 3)) + ImageSplit(images, torch.zeros(4, dtype=torch.int64), (0, 1))
    assert both.classes == (0, 1, 3)
    assert (both + ImageSplit(images, labels)).classes is None


def test_classes_that_do_not_fit_labels_or_model_are_refused(preprocessing):
    images, labels = torch.zeros((2, 3, 8, 8), dtype=torch.uint8), torch.tensor([1, 5])
    with pytest.raises(ValueError, match="label 5 is not among the 2 classes"):
        ImageSplit(images, labels, (1, 3))
    with pytest.raises(ValueError, match="classes up to 5, but the model has 4 outputs"):
        split = ImageSplit(images, labels, (1, 5))
        evaluate(Fixed([0.0] * 4), split, Normalizer(preprocessing), make_accelerator())


def test_images_of_lists_without_class_folders_serve_numbered_classes(tmp_path):
    for split, file in (("train", "train.txt"), ("val", "val.txt"), ("test", "test.txt")):
        write_list(tmp_path / "task", file, lines_of(split, [0, 1, 2]))
    write_list(tmp_path / "shifted", "test.txt", lines_of("shifted", [2, 0]))
    listing = other(tmp_path / "task", tmp_path / "shifted")
    assert (listing.labels, listing.classes) == ([2, 0], (0, 2))
