"""Lists of images in the layouts that circulate are read as they are, and what is wrong with one is said by line."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import (
    encode,
    lines_of,
    pixels,
    refused,
    whole,
    write_few_shot_task,
    write_image_folder,
    write_list,
    write_task,
    write_vtab_task,
)

from peft_noah.data import load_splits, read_listings
from peft_noah.data.decoding import decode_image

pytest_plugins = ["image_fixtures"]


def files(listing):
    return ["/".join(image["path"].rsplit("/", 2)[1:]) for image in listing.images]


def test_vtabs_lists_give_the_images_and_labels_of_each_line(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "vtab-1k" / "cifar")
    splits = load_splits(task, preprocessing)
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.validation.labels.tolist() == [2, 1, 0]
    assert splits.label_names == ("0", "1", "2")
    expected = preprocessing.apply(decode_image((task / "images/train/000003.png").read_bytes()))
    assert torch.equal(splits.train[3]["pixel_values"], expected)


@pytest.mark.parametrize("without", [(), ("train800val200.txt",), ("train800.txt",), ("val200.txt",)])
def test_any_two_of_vtabs_three_lists_give_the_third(tmp_path, without):
    listings = read_listings(write_vtab_task(tmp_path / "cifar", without=without))
    assert files(listings.train) == [f"train/{number:06d}.png" for number in range(6)]
    assert files(listings.validation) == [f"val/{number:06d}.png" for number in range(3)]


def test_all_1000_images_alone_are_split_class_by_class(tmp_path):
    task = write_vtab_task(tmp_path / "cifar", [0, 1] * 8, [0, 1] * 2, without=("train800.txt", "val200.txt"))
    listings = read_listings(task)
    assert listings.sizes == {"train": 16, "validation": 4, "test": 3}
    assert "4 of 20 training images were split off" in listings.notes[0]


def test_one_list_can_be_named_as_the_training_split(tmp_path):
    task = write_vtab_task(tmp_path / "cifar")
    listings = read_listings(task, train_split="train800val200", validation_split=None)
    assert listings.sizes == {"train": 6, "validation": 3, "test": 3}
    assert listings.train.split == "train"


@pytest.mark.parametrize("splits", [("train800", "val200", "test"), ("train800val200", "test"), ("val200", "test")])
def test_parquet_with_vtabs_split_names_is_understood(tmp_path, splits):
    if splits[0] == "val200":
        write_task(tmp_path / "task", splits)
        with pytest.raises(ValueError, match="has no split 'train'; it has test, val200"):
            read_listings(tmp_path / "task")
        return
    listings = read_listings(write_task(tmp_path / "task", splits))
    both = "val200" in splits
    assert listings.sizes == {"train": 6 if both else 3, "validation": 6 if both else 3, "test": 6}


def test_a_hub_datasets_config_is_asked_for_after_a_colon(preprocessing, tmp_path, monkeypatch):
    asked = []
    tables = {"train800": 0, "val200": 0, "test": 0}
    local = datasets.Dataset.from_parquet([str(write_task(tmp_path / "task") / "train.parquet")])
    monkeypatch.setattr(datasets, "load_dataset", lambda *ids: asked.append(ids) or dict.fromkeys(tables, local))
    assert load_splits("someone/vtab-1k:cifar", preprocessing).source == "someone/vtab-1k:cifar"
    assert asked == [("someone/vtab-1k", "cifar")]


def test_the_list_of_the_shots_and_the_seed_is_taken(tmp_path):
    task = write_few_shot_task(tmp_path / "fgvc-aircraft")
    for shots, seed in ((1, 0), (2, 1)):
        listings = read_listings(task, shots=shots, seed=seed)
        assert files(listings.train) == [f"images/train{seed}_{number}.jpg" for number in range(3 * shots)]
        assert files(listings.validation) == ["images/val_0.jpg", "images/val_1.jpg", "images/val_2.jpg"]
        assert listings.test.labels == [2, 1, 0]


def test_shots_or_seeds_without_a_list_are_refused(tmp_path):
    task = write_few_shot_task(tmp_path / "pets")
    with pytest.raises(
        ValueError, match=r"no list for 4 shots with seed 0; it has \(shots, seed\) \(1, 0\), \(1, 1\), "
    ):
        read_listings(task, shots=4)
    with pytest.raises(ValueError, match="training lists for 1, 2 shots and none of all images. Give shots"):
        read_listings(task)


def test_a_list_of_all_training_images_serves_without_shots(tmp_path):
    task = write_few_shot_task(tmp_path / "pets")
    write_list(task, "annotations/train_meta.list", lines_of("all", [0, 1, 2] * 3, "{split}_{number}.jpg"), "images")
    assert read_listings(task).sizes["train"] == 9
    assert read_listings(task, shots=1).sizes["train"] == 3


def test_class_folders_of_a_list_name_the_classes(tmp_path):
    task = write_few_shot_task(tmp_path / "food101", pattern="dish {label}/{split} {number}.jpg")
    listings = read_listings(task, shots=1)
    assert listings.label_names == ("dish 0", "dish 1", "dish 2")
    assert files(listings.test)[0] == "dish 2/test 0.jpg"


def test_imagenets_lists_find_train_and_val_by_class_and_the_authors_held_out_images(tmp_path):
    pattern = "n0{label}/{split}_{number}.JPEG"
    train = lines_of("train", [0, 1], pattern)
    write_list(tmp_path, "annotations/train_meta.list.num_shot_16.seed_1", train, "images/train")
    write_list(
        tmp_path, "annotations/unofficial_val_list_4_shot16seed0", lines_of("held", [0, 1], pattern) + train[:1]
    )
    for path, _ in lines_of("held", [0, 1], pattern):
        (tmp_path / path).rename(tmp_path / "images/train" / path)
    test = lines_of("ILSVRC2012_val", [1, 0], "{split}_{number:08d}.JPEG")
    write_list(tmp_path, "annotations/val_meta.list", test, "images/val/n00")
    (tmp_path / "images/val/n01").mkdir()
    (tmp_path / "images/val/n00/ILSVRC2012_val_00000000.JPEG").rename(
        tmp_path / "images/val/n01/ILSVRC2012_val_00000000.JPEG"
    )
    listings = read_listings(tmp_path, shots=16, seed=1)
    assert files(listings.train) == ["n00/train_0.JPEG", "n01/train_1.JPEG"]
    assert files(listings.validation) == ["n00/held_0.JPEG", "n01/held_1.JPEG"]
    assert files(listings.test) == ["n01/ILSVRC2012_val_00000000.JPEG", "n00/ILSVRC2012_val_00000001.JPEG"]
    assert listings.label_names == ("n00", "n01")  # so that further test sets by class folder can be matched


def write_coop(folder, base="jpg", **changes):
    data = {
        "train": [[f"a_{number}.jpg", number % 2, ("rose", "tulip")[number % 2]] for number in range(12)],
        "val": [["v_0.jpg", 0, "rose"], ["v_1.jpg", 1, "tulip"]],
        "test": [["t_0.jpg", 1, "tulip"]],
        **changes,
    }
    for split in ("train", "val", "test"):
        for path, *_ in data[split]:
            (folder / base).mkdir(parents=True, exist_ok=True)
            (folder / base / path).write_bytes(encode(pixels(hash(path) % 1000, 4, 4)))
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("base", ["jpg", "", "images"])
def test_coops_split_file_gives_class_names_and_shots_drawn_with_the_seed(tmp_path, base):
    task = write_coop(tmp_path / "oxford_flowers", base)
    assert read_listings(task).sizes == {"train": 12, "validation": 2, "test": 1}
    listings = read_listings(task, shots=4, seed=2)
    assert listings.label_names == ("rose", "tulip")
    assert sorted(listings.train.labels) == [0] * 4 + [1] * 4
    assert files(listings.train) == files(read_listings(task, shots=4, seed=2).train)
    assert files(listings.train) != files(read_listings(task, shots=4, seed=3).train)
    assert len(listings.validation) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": {}}, "has no list 'test': expected train, val and test"),
        ({"test": [["t.jpg"]]}, "entry 0 of 'test' in .* expected .path, label, class name"),
        ({"test": [["t.jpg", "1.5", "tulip"]]}, "the label '1.5': expected a whole number"),
        ({"test": [["t.jpg", True, "tulip"]]}, "the label True: expected a whole number"),
        ({"test": [["t.jpg", 1, "rose"]]}, "names class 1 'rose', but entry 1 of 'train' in .* 'tulip'"),
    ],
)
def test_a_split_file_that_is_not_coops_is_refused(tmp_path, changes, message):
    task = write_coop(tmp_path / "task")
    file = task / "split_zhou_OxfordFlowers.json"
    (task / "jpg" / "t.jpg").write_bytes(b"")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        read_listings(task)


def test_a_split_file_cut_short_is_refused(tmp_path):
    file = write_coop(tmp_path / "task") / "split_zhou_OxfordFlowers.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match="OxfordFlowers.json is not valid JSON"):
        read_listings(tmp_path / "task")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "images/train/gone.png 1",
            "line 7 of .*train800.txt names the image 'images/train/gone.png', which is not in",
        ),
        ("images/train/000000.png", "line 7 of .*train800.txt is 'images/train/000000.png': expected the path"),
        ("images/train/000000.png 1_0", "line 7 of .*train800.txt gives .* the label '1_0': expected a whole number"),
        (r"images\..\secret.png 1", "line 7 of .*train800.txt names .* which is absolute or leads out"),
        ("images/train/000000.png one", "line 7 of .*train800.txt gives .* the label 'one': expected a whole number"),
        ("images/train/000000.png -1", "line 7 .* the label -1: allowed are 0 to 99999"),
        ("images/train/000000.png 1000000000", "line 7 .* the label 1000000000: allowed are 0 to 99999"),
        ("images/train/000000.png 2", "line 7 .* the label 2, but line 1 of .*train800.txt gives it 0"),
        ("/etc/passwd 1", "line 7 of .*train800.txt names '/etc/passwd', which is absolute or leads out"),
        ("C:/images/0.png 1", "line 7 of .*train800.txt names 'C:/images/0.png', which is absolute or leads out"),
        ("images/../../secret.png 1", r"line 7 .* names 'images/../../secret.png', which is absolute or leads out"),
        ("images/train 1", "line 7 of .*train800.txt names the image 'images/train', which is not in"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, preprocessing, line, message):
    task = write_vtab_task(tmp_path / "cifar")
    with open(task / "train800.txt", "a") as file:
        file.write(line + "\n")
    refused(task, preprocessing, message)


def test_a_label_from_the_number_of_classes_on_is_refused(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "cifar")
    refused(task, preprocessing, "line 3 of .*train800.txt .* label 2: allowed are 0 to 1", num_classes=2)
    assert load_splits(task, preprocessing, num_classes=3).num_classes == 3


def test_a_label_that_leaves_classes_without_images_is_said(tmp_path, caplog):
    read_listings(write_vtab_task(tmp_path / "cifar", test=[0, 1, 2, 7]))
    assert "4 of 8 classes have no image in any list; is a label wrong?" in caplog.text


def test_a_repeated_line_is_left_out_and_counted(tmp_path, caplog):
    task = write_vtab_task(tmp_path / "cifar")
    lines = (task / "train800.txt").read_text()
    (task / "train800.txt").write_text(lines + lines.replace("images/", "./images//") + "\n\n")
    assert read_listings(task).sizes["train"] == 6
    assert "train800.txt: 6 of 12 lines repeat another and are left out" in caplog.text


def test_a_list_that_is_no_text_is_refused(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "cifar")
    (task / "test.txt").write_bytes(b"\xff\xfe\x00")
    refused(task, preprocessing, "test.txt is no text")


def test_an_empty_list_is_refused(tmp_path, preprocessing):
    refused(write_vtab_task(tmp_path / "cifar", test=()), preprocessing, "the test split of .*cifar is empty")


def test_a_missing_list_of_test_images_is_no_test_split(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "cifar", without=("test.txt",))
    assert load_splits(task, preprocessing).test is None
    refused(task, preprocessing, "has no split 'tests'; it has train800, train800val200, val200", test_split="tests")


def test_a_corrupt_image_of_a_list_is_named_by_its_path(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "cifar")
    (task / "images/test/000001.png").write_bytes(b"no image")
    refused(task, preprocessing, r"image 1 of split 'test' \(.*images/test/000001.png\) cannot be used")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text(alphabet="images/tr0.png -1\n\0\\:\u2028", max_size=60)))
def test_whatever_a_list_holds_only_a_clear_error_comes_of_it(tmp_path, content):
    task = tmp_path / "cifar"
    if not task.exists():
        write_vtab_task(task)
    (task / "test.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        read_listings(task)
    except ValueError as error:
        assert type(error) is ValueError and "cifar" in str(error)


def test_a_folder_of_images_by_class_may_hold_lists_of_its_own(tmp_path):
    folder = write_image_folder(tmp_path / "pets")
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text("0\n1\n")
    assert read_listings(folder).label_names == ("ant", "owl")


def test_lists_are_read_without_decoding(tmp_path):
    task = write_vtab_task(tmp_path / "cifar")
    for image in task.rglob("*.png"):
        image.write_bytes(b"no image")
    assert read_listings(task).sizes == {"train": 6, "validation": 3, "test": 3}


def test_listed_images_decoded_later_equal_images_kept_in_memory(tmp_path, preprocessing):
    task = write_vtab_task(tmp_path / "cifar")
    splits = load_splits(task, preprocessing)
    later = load_splits(task, preprocessing, cache_gb=0)
    assert torch.equal(whole(splits.test), whole(later.test))
    assert splits.fingerprint == later.fingerprint


def test_a_list_written_on_windows_is_read(tmp_path):
    task = write_vtab_task(tmp_path / "cifar")
    (task / "test.txt").write_text((task / "test.txt").read_text().replace("/", "\\"))
    assert len(read_listings(task).test) == 3


def test_a_list_without_labels_stands_back_behind_class_folders(tmp_path):
    folder = write_image_folder(tmp_path / "pets")
    shutil.rmtree(folder / "test")
    (folder / "train.txt").write_text("ant/0.png\nowl/0.png\n")
    assert read_listings(folder).label_names == ("ant", "owl")
