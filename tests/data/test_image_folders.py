"""The classes of an image folder are the folders directly in a split, and whatever is not read is counted and said."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from image_files import encode, pixels, refused, write_image_folder

from peft_noah.data import Preprocessing, load_splits, read_listings

pytest_plugins = ["image_fixtures"]


def put(folder: Path, *names: str) -> Path:
    """Files below a folder: images where they are named so, each its own; else a few letters."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_image = path.suffix.lower() in (".png", ".jpg")
        path.write_bytes(encode(pixels(sum(map(ord, str(name))), 4, 4)) if is_image else b"no image")
    return folder


def by_class(listings, split: str = "train") -> dict[str, list[str]]:
    """The names of the files of every class of a split."""
    found: dict[str, list[str]] = {}
    listing = getattr(listings, split)
    for image, label in zip(listing.images, listing.labels, strict=True):
        found.setdefault(listings.label_names[label], []).append(Path(image["path"]).name)
    return {name: sorted(files) for name, files in sorted(found.items())}


def splits_of(*names: str) -> list[str]:
    return [f"{split}/{name}" for split in ("train", "val", "test") for name in names]


BOTH = splits_of("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")


def test_images_below_a_class_folder_are_of_that_class_however_deep(tmp_path):
    put(tmp_path, *splits_of("cat/day1/a.png", "cat/day2/x/b.png", "cat/c.png", "dog/day1/d.png"))
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "dog")
    assert by_class(listings) == {"cat": ["a.png", "b.png", "c.png"], "dog": ["d.png"]}
    assert by_class(listings, "test") == by_class(listings)


def test_an_image_directly_in_a_split_is_no_class_and_said_by_its_name(tmp_path, caplog):
    listings = read_listings(put(tmp_path, *BOTH, "train/stray.png"))
    assert listings.label_names == ("cat", "dog") and len(listings.train) == 4
    assert listings.left_out["train"] == {"images in no class folder": 1}
    assert "1 images in no class folder (train/stray.png)" in caplog.text


@pytest.mark.parametrize(
    "junk", ["@eaDir/x.png/y.png", "thumbnails/1.png", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png"]
)
def test_folders_that_no_person_made_are_no_classes_and_counted(tmp_path, junk, caplog):
    listings = read_listings(put(tmp_path, *BOTH, f"train/cat/{junk}", f"test/{junk}"))
    assert listings.label_names == ("cat", "dog")
    assert by_class(listings) == {"cat": ["1.png", "2.png"], "dog": ["1.png", "2.png"]}
    reason = {f"in folders named {junk.split('/')[0]}": 1}
    assert listings.left_out == {"train": reason, "validation": {}, "test": reason}
    assert f"train/cat/{junk}" in caplog.text


def test_a_class_folder_that_is_a_link_is_followed(tmp_path):
    put(tmp_path / "elsewhere", "7.png", "8.png")
    folder = put(tmp_path / "task", *splits_of("cat/1.png"))
    for split in ("train", "val", "test"):
        (folder / split / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    listings = read_listings(folder)
    assert by_class(listings) == {"cat": ["1.png"], "dog": ["7.png", "8.png"]}
    assert by_class(listings, "test") == by_class(listings)


def test_a_class_folder_that_is_a_link_to_nothing_is_named(tmp_path, preprocessing):
    folder = put(tmp_path / "task", *BOTH)
    (folder / "train" / "owl").symlink_to(tmp_path / "gone")
    refused(folder, preprocessing, "class folder 'owl' of the train split, .* is a link to .*gone, which is not there")


def test_links_that_lead_back_are_read_once(tmp_path):
    folder = put(tmp_path, *BOTH)
    (folder / "train" / "cat" / "again").symlink_to(folder / "train" / "cat")
    (folder / "train" / "cat" / "3.png").symlink_to("nowhere.png")
    listings = read_listings(folder)
    assert by_class(listings)["cat"] == ["1.png", "2.png"]
    assert listings.left_out["train"] == {"links to folders that are read already": 1, "broken links": 1}


def test_two_class_folders_that_are_one_are_refused(tmp_path, preprocessing):
    folder = put(tmp_path, *BOTH)
    (folder / "train" / "kitten").symlink_to(folder / "train" / "cat")
    refused(
        folder, preprocessing, "class folder 'kitten' of the train split.*1 links to folders that are read already"
    )


def test_class_folders_may_have_any_name(tmp_path):
    names = ("__background__", ".net", "a b", "Ärger", "0", "train")
    listings = read_listings(put(tmp_path, *splits_of(*(f"{name}/1.png" for name in names))))
    assert listings.label_names == tuple(sorted(names))
    assert all(by_class(listings, "test")[name] == ["1.png"] for name in names)


def test_a_hidden_folder_without_images_is_no_class(tmp_path):
    listings = read_listings(put(tmp_path, *BOTH, "train/.idea/project.xml", ".cache/huggingface/x.lock"))
    assert listings.label_names == ("cat", "dog")
    assert listings.left_out["train"] == {"in folders named .idea": 1}


def test_files_that_are_no_images_are_counted_by_extension(tmp_path, caplog):
    extra = (
        "cat/notes.txt",
        "cat/Thumbs.db",
        "dog/Thumbs.db",
        "dog/x.heic",
        "dog/README",
        "dog/._1.png",
        "labels.csv",
    )
    listings = read_listings(put(tmp_path, *BOTH, *(f"train/{name}" for name in extra)))
    assert listings.left_out["train"] == {
        ".txt files": 1,
        ".db files": 2,
        ".heic files": 1,
        "files without an extension": 1,
        "hidden files": 1,
        ".csv files": 1,
    }
    assert "2 .db files (train/cat/Thumbs.db, train/dog/Thumbs.db)" in caplog.text
    assert by_class(listings)["dog"] == ["1.png", "2.png"]


def test_a_class_that_loses_all_its_files_is_an_error_that_names_it(tmp_path, preprocessing):
    put(tmp_path, *BOTH, "train/owl/1.heic", "train/owl/2.HEIC")
    refused(
        tmp_path, preprocessing, r"class folder 'owl' of the train split, .* has no image .*: 2 \.heic files. Allowed"
    )


def test_an_empty_class_folder_is_counted(tmp_path):
    folder = put(tmp_path, *BOTH)
    (folder / "train" / "owl").mkdir()
    listings = read_listings(folder)
    assert listings.label_names == ("cat", "dog") and listings.left_out["train"] == {"empty folders": 1}


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "Test"), ("train", "testing")])
def test_splits_are_known_in_any_case_and_by_their_long_names(tmp_path, names):
    train, test = names
    put(tmp_path, f"{train}/cat/1.png", f"{train}/cat/2.png", f"{train}/dog/1.png", f"{train}/dog/2.png")
    listings = read_listings(put(tmp_path, f"{test}/cat/3.png", f"{test}/dog/4.png"))
    assert listings.label_names == ("cat", "dog")
    assert by_class(listings, "test") == {"cat": ["3.png"], "dog": ["4.png"]}


# --- without splits, without test labels ------------------------------------------------------------------------------


def test_a_folder_of_class_folders_is_split_class_by_class_and_said(tmp_path, preprocessing, caplog):
    folder = tmp_path / "task"
    for name in ("cat", "dog"):
        put(folder, *(f"{name}/{index}.png" for index in range(10)))
    splits = load_splits(folder, preprocessing, seed=3)
    assert splits.label_names == ("cat", "dog")
    counts = [Counter(split.labels.tolist()) for split in (splits.train, splits.validation, splits.test)]
    assert counts == [{0: 6, 1: 6}, {0: 2, 1: 2}, {0: 2, 1: 2}]
    assert splits.notes == (
        "no test split; 4 of 20 images were split off, class by class, with seed 3",
        "no validation split; 4 of 16 training images were split off, class by class, with seed 3",
    )
    assert all(note in caplog.text for note in splits.notes)
    paths = [image["path"] for listing in read_listings(folder, seed=3).by_name().values() for image in listing.images]
    assert len(set(paths)) == 20
    assert load_splits(folder, preprocessing, seed=3).fingerprint == splits.fingerprint
    assert load_splits(folder, preprocessing, seed=4).fingerprint != splits.fingerprint


def test_a_flat_folder_of_test_images_is_no_class_beside_class_folders(tmp_path):
    for name in ("cat", "dog", "test"):
        put(tmp_path, *(f"{name}/{index}.png" for index in range(10)))
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "dog")
    assert listings.sizes == {"train": 12, "validation": 4, "test": 4}
    assert "the folder 'test' is no split and was not read (10 files)" in listings.notes


def test_images_of_trains_are_a_class_beside_those_of_cars(tmp_path):
    for name in ("car", "plane", "train"):
        put(tmp_path, *(f"{name}/{index}.png" for index in range(5)))
    assert read_listings(tmp_path).label_names == ("car", "plane", "train")


def test_a_flat_folder_of_unlabelled_test_images_is_no_class_and_no_test_split(tmp_path, preprocessing):
    folder = tmp_path / "task"
    put(folder, *(name for name in BOTH if not name.startswith("test")), "test/1.png", "test/2.png")
    splits = load_splits(folder, preprocessing)
    assert splits.label_names == ("cat", "dog") and splits.test is None
    assert splits.to_dict()["sizes"] == {"train": 4, "validation": 4, "test": 0}
    assert splits.notes == (
        "the 2 images of the test split lie in no class folder, so they have no labels",
        "there are no labelled test images, so there is no test accuracy",
    )
    assert splits.to_dict()["images"]["test"] == {"left out: images in no class folder": 2}


def test_without_a_test_split_there_is_none(tmp_path, preprocessing):
    folder = tmp_path / "task"
    put(folder, *(name for name in BOTH if not name.startswith("test")))
    splits = load_splits(folder, preprocessing)
    assert splits.test is None and (len(splits.train), len(splits.validation)) == (4, 4)
    assert "no test accuracy" in splits.notes[0]
    refused(folder, preprocessing, "has no split 'held_out'; it has train, val", test_split="held_out")


def test_splits_can_be_named_and_validation_can_be_the_test_split(tmp_path):
    put(tmp_path, *(f"{split}/{name}/{i}.png" for split in ("train", "val") for name in ("a", "b") for i in range(5)))
    for name in ("val", "validation"):
        if name == "validation":
            (tmp_path / "val").rename(tmp_path / "validation")
        listings = read_listings(tmp_path, test_split=name)
        assert listings.sizes == {"train": 8, "validation": 2, "test": 10}
    named = put(tmp_path / "named", *(f"{s}/{n}/{i}.png" for s in ("my", "ours") for n in "ab" for i in range(3)))
    assert read_listings(named, train_split="my", test_split="ours").sizes == {"train": 4, "validation": 2, "test": 6}


def test_a_training_folder_without_class_folders_is_refused(tmp_path, preprocessing):
    folder = tmp_path / "task"
    put(folder, "train/1.png", "train/2.png", "test/1.png")
    refused(folder, preprocessing, "the train split of .* is empty: its 2 images lie in no class folder")


def test_the_only_folder_of_an_unpacked_archive_is_looked_into(tmp_path):
    put(tmp_path / "archive" / "pets", *BOTH)
    assert read_listings(tmp_path / "archive").label_names == ("cat", "dog")


# --- what a run says of its data --------------------------------------------------------------------------------------


def test_the_summary_says_images_per_class_and_what_was_left_out(tmp_path, preprocessing, caplog):
    put(tmp_path, *BOTH, "train/cat/3.png", "train/cat/notes.txt")
    with caplog.at_level(logging.INFO):
        splits = load_splits(tmp_path, preprocessing)
    assert splits.to_dict()["images"] == {
        "train": {
            "images": 5,
            "classes": 2,
            "fewest per class": 2,
            "most per class": 3,
            "left out: .txt files": 1,
        },
        "validation": {"images": 4, "classes": 2, "fewest per class": 2, "most per class": 2},
        "test": {"images": 4, "classes": 2, "fewest per class": 2, "most per class": 2},
    }
    assert "train: 5 images, 2 classes, 2 fewest per class, 3 most per class, 1 left out: .txt files" in caplog.text


def test_the_fingerprint_of_a_plain_folder_is_what_datasets_order_gave(tmp_path, preprocessing):
    """Images in the order of their paths, over all classes: 'ant-b/0.png' sorts before 'ant/0.png'."""
    folder = write_image_folder(tmp_path, classes=("ant", "ant-b"))
    paths = [os.path.relpath(image["path"], folder) for image in read_listings(folder).train.images]
    assert paths == ["train/ant-b/0.png", "train/ant-b/1.png", "train/ant/0.png", "train/ant/1.png"]
    assert isinstance(preprocessing, Preprocessing)


def test_what_lies_beside_the_splits_is_said(tmp_path):
    folder = put(tmp_path, *BOTH, "test1/1.png", "test1/2.png", "sample.png", "labels.csv", "__MACOSX/x.png")
    assert read_listings(folder).notes == (
        "the folder '__MACOSX' is no split and was not read (1 files)",
        "the folder 'test1' is no split and was not read (2 files)",
        "what lies beside the splits' folders is no split and was not read (1 files)",
    )


@pytest.mark.parametrize("names", [("seg_train", "seg_test"), ("training_set", "test_set"), ("train2017", "val2017")])
def test_splits_under_names_of_their_own_are_no_classes_and_can_be_named(tmp_path, preprocessing, names):
    folder = put(
        tmp_path / "task", *(f"{split}/{c}/{i}.png" for split in names for c in ("cat", "dog") for i in (1, 2))
    )
    refused(folder, preprocessing, f"has no split 'train'; it has {', '.join(sorted(names))}.*train_split")
    listings = read_listings(folder, train_split=names[0], test_split=names[1])
    assert listings.label_names == ("cat", "dog") and len(listings.test) == 4


@pytest.mark.parametrize("name", ["test1", "test_images", "Test"])
def test_a_flat_folder_of_test_images_is_no_class_whatever_it_is_called(tmp_path, name):
    put(tmp_path, *(f"{folder}/{index}.png" for folder in ("cat", "dog", name) for index in range(5)))
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "dog")
    assert f"the folder {name!r} is no split and was not read (5 files)" in listings.notes


# --- layouts that are easily taken for others -------------------------------------------------------------------------


def test_a_split_that_is_a_link_to_nothing_is_named(tmp_path, preprocessing):
    folder = put(tmp_path / "task", *(name for name in BOTH if not name.startswith("val")))
    (folder / "val").symlink_to(tmp_path / "gone")
    refused(folder, preprocessing, "the split .*val is a link to .*gone, which is not there. Repair the link")


def test_archives_within_archives_are_looked_into(tmp_path):
    put(tmp_path, *(f"a/b/c/{name}" for name in BOTH), "__MACOSX/a/._b", "a/readme.txt")
    assert read_listings(tmp_path).label_names == ("cat", "dog")


def test_a_split_within_a_folder_of_the_same_name_is_found(tmp_path):
    put(tmp_path, *(f"{name.split('/')[0]}/{name}" for name in BOTH if name[0] == "t"), "val/val/1.png")
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "dog") and listings.sizes == {"train": 2, "validation": 2, "test": 4}
    assert "the 1 images of the validation split lie in no class folder, so they have no labels" in listings.notes


@pytest.mark.parametrize("layout", ["images/{}/{}.png", "a/b/{}/{}.png", "train/images/{}/{}.png"])
def test_a_folder_around_those_of_the_classes_is_named(tmp_path, preprocessing, layout):
    folder = put(tmp_path / "task", *(layout.format(name, index) for name in ("cat", "dog") for index in range(5)))
    refused(
        folder,
        preprocessing,
        "all images of .* are of one class, '(images|a)'.* If the 2 folders in .* .cat, dog, ...",
    )


def test_images_and_masks_are_no_classes(tmp_path, preprocessing):
    folder = put(tmp_path / "task", *(f"{name}/{index}.png" for name in ("images", "Masks") for index in range(5)))
    refused(folder, preprocessing, "are 'Masks', 'images': parts of a dataset are called so, and no classes")


def test_splits_within_class_folders_are_refused(tmp_path, preprocessing):
    names = [f"{name}/{split}/{i}.png" for name in ("cat", "dog") for split in ("train", "test") for i in range(5)]
    refused(put(tmp_path / "task", *names), preprocessing, "splits within its class folders, .*/test and .*/train")


def test_a_class_named_in_the_coding_of_macos_is_the_same_class(tmp_path):
    both = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    folder = put(tmp_path, *(f"train/{name}/{i}.png" for name in (both[0], "dog") for i in (1, 2)))
    put(folder, *(f"test/{name}/3.png" for name in (both[1], "dog")), f"train/{both[1]}/3.png")
    listings = read_listings(folder)
    assert listings.label_names == (both[0], "dog")
    assert by_class(listings, "test") == {both[0]: ["3.png"], "dog": ["3.png"]}
    assert listings.sizes["train"] + listings.sizes["validation"] == 5


def test_a_class_of_another_case_in_the_test_split_is_named_with_the_one_it_resembles(tmp_path, preprocessing):
    folder = put(tmp_path / "task", *(name for name in BOTH if name.startswith("train")), "test/Cat/1.png")
    refused(folder, preprocessing, "class folder 'Cat', which the training images lack. It differs from 'cat' in case")


def test_classes_that_are_all_but_the_same_are_said(tmp_path):
    listings = read_listings(put(tmp_path, *BOTH, *splits_of("Cat/1.png", "Cat/2.png")))
    assert listings.label_names == ("Cat", "cat", "dog")
    assert listings.notes == ("the classes 'Cat' and 'cat' differ in case, spaces or the coding of accents only",)


def test_a_class_that_validation_or_test_lack_is_a_warning(tmp_path, preprocessing, caplog):
    load_splits(put(tmp_path / "task", *BOTH, "train/owl/1.png", "val/owl/1.png"), preprocessing)
    assert "1 classes of the training images have no image in the test split (owl)" in caplog.text
    assert "in the validation split" not in caplog.text


def test_loose_images_alone_are_counted_in_the_message(tmp_path, preprocessing):
    folder = put(tmp_path / "task", "1.png", "2.png", "labels.csv")
    refused(
        folder, preprocessing, "neither parquet files nor folders of images, but 2 images in no class folder.*metadata"
    )


def test_a_folder_of_folders_without_images_is_refused(tmp_path, preprocessing):
    refused(put(tmp_path / "task", "docs/a.md", "src/b.py"), preprocessing, "the train split of .* is empty")


def test_a_run_in_the_folder_of_its_dataset_is_no_class(tmp_path):
    put(tmp_path, *(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(5)))
    put(
        tmp_path / "noah-run",
        "settings.json",
        ".locks/supernet.lock",
        "figures/search.png",
        "adapter/architecture.png",
    )
    put(tmp_path / "noah-suite", "suite.json", "cat/seed0/figures/search.png")
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "dog") and len(listings.train) == 6
    assert listings.left_out["train"] == {"in folders named noah-run": 4, "in folders named noah-suite": 2}


def test_an_empty_source_is_not_the_working_folder(tmp_path, preprocessing, monkeypatch):
    monkeypatch.chdir(put(tmp_path / "task", *BOTH))
    refused("", preprocessing, "the source of dataset is empty")
    refused(".", preprocessing, "the source of sketch is empty", other_tests={"sketch": ""})
