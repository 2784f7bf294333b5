"""Datasets in the layouts that people have on disk: downloaded Hub repositories, save_to_disk folders, metadata files."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image, Value
from image_files import NAMES, encode, pixels, refused, rows, whole, write_image_folder, write_split

from peft_noah.data import load_splits, read_listings

pytest_plugins = ["image_fixtures"]
HASH = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, hf_cache):
    def refuse(*_, **__):
        raise AssertionError("a folder was read, and a request sent")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def put_parquet(folder: Path, file: str, first: int, labels=(0, 1, 2), feature=None) -> None:
    path = folder / file
    write_split(path.parent, path.name, rows(len(labels), first), list(labels), feature)


def test_images(listings) -> list[bytes]:
    return [image["bytes"] for image in listings.test.images]


test_images.__test__ = False


@pytest.mark.parametrize(
    "pattern",
    [
        f"data/{{split}}-00000-of-00001-{HASH}.parquet",
        "data/{split}-00000-of-00001.parquet",
        "{split}/0000.parquet",
        "data/{split}/0000.parquet",
        "default/{split}/0000.parquet",
        "plain_text/{split}-00000-of-00001.parquet",
        "{split}/part-7.parquet",
        "{split}_0.parquet",
    ],
)
def test_a_downloaded_hub_repository_is_read(tmp_path, pattern):
    task = tmp_path / "[a] repo"
    for position, split in enumerate(("train", "validation", "test")):
        put_parquet(task, pattern.format(split=split), 10 * position)
    (task / "README.md").write_text("---\nlicense: mit\n---\n# Pets\n")
    listings = read_listings(task)
    assert listings.label_names == ("cat", "dog", "owl")
    assert [listing.labels for listing in listings.by_name().values()] == [[0, 1, 2]] * 3
    assert test_images(listings) == [row["bytes"] for row in rows(3, 20)]


def test_several_shards_of_a_downloaded_repository_are_read_in_order(tmp_path):
    for shard in (0, 1):
        put_parquet(tmp_path, f"data/train-0000{shard}-of-00002-{HASH}.parquet", 10 * shard, (shard, 2))
    put_parquet(tmp_path, f"data/test-00000-of-00001-{HASH}.parquet", 50)
    listings = read_listings(tmp_path, validation_fraction=0.5)
    assert sorted(listings.train.labels + listings.validation.labels) == [0, 1, 2, 2]
    assert [image["bytes"] for image in listings.train.images.dataset] == [
        row["bytes"] for first in (0, 10) for row in rows(2, first)
    ]


def write_configs(folder: Path) -> None:
    for position, (config, names) in enumerate({"coarse": ["pet", "wild"], "fine": NAMES}.items()):
        for split in ("train", "test"):
            labels = tuple(range(len(names))) * 2
            put_parquet(folder, f"{config}/{split}/0000.parquet", 10 * position, labels, ClassLabel(names=names))


def test_one_of_several_configs_is_named_and_the_error_lists_them(tmp_path, preprocessing):
    task = tmp_path / "task"
    write_configs(task)
    refused(task, preprocessing, "holds several configs: it has coarse, fine. Choose one by dataset_config")
    refused(task, preprocessing, "has no config 'fin': it has coarse, fine", dataset_config="fin")
    assert read_listings(task, dataset_config="fine").label_names == ("cat", "dog", "owl")
    assert read_listings(task, dataset_config="coarse").label_names == ("pet", "wild")


def test_the_configs_of_a_readme_are_those_of_datasets(tmp_path, preprocessing):
    task = tmp_path / "task"
    for split in ("a", "b"):
        put_parquet(task, f"files/{split}-x.parquet", 0, (0, 1, 2) * 2, Value("int64"))
    (task / "README.md").write_text(
        """---
configs:
- config_name: one
  default: true
  data_files:
  - {split: train, path: files/a-*.parquet}
  - {split: test, path: files/b-*.parquet}
- config_name: two
  data_files:
  - {split: train, path: files/b-*.parquet}
  - {split: test, path: files/a-*.parquet}
dataset_info:
- config_name: one
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {'0': x, '1': y, '2': z}}}}
---
"""
    )
    assert read_listings(task, dataset_config="two").label_names == ("0", "1", "2")
    assert read_listings(task, dataset_config="one").label_names == ("x", "y", "z")
    assert read_listings(task).sizes == {"train": 3, "validation": 3, "test": 6}
    text = (task / "README.md").read_text()
    for outside in (
        "hf://datasets/someone/pets/x.parquet",
        "/etc/*.parquet",
        "../x.parquet",
        "https://x.org/x.parquet",
    ):
        (task / "README.md").write_text(text.replace("files/a-*.parquet", outside))
        refused(task, preprocessing, "lead out of that folder: this is refused")


def test_a_hub_dataset_is_read_in_its_config(monkeypatch, preprocessing):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample: x"
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    refused("someone/pets:fine", preprocessing, "available configs")
    refused("someone/pets", preprocessing, "available configs: .'a', 'b'.. Choose one by", dataset_config="fine")
    refused("someone/pets", preprocessing, "available configs")
    assert asked == [("someone/pets", "fine"), ("someone/pets", "fine"), ("someone/pets",)]
    refused("someone/pets:fine", preprocessing, "names the config 'fine'", dataset_config="coarse")


@pytest.mark.parametrize("text", [b"---\nconfigs: [\n---\n", b"\xff\xfe", b"no YAML at all", b"---\nconfigs: 3\n"])
def test_a_readme_that_cannot_be_read_is_left_out(tmp_path, text):
    for split in ("train", "test"):
        put_parquet(tmp_path, f"{split}.parquet", 0, (0, 1, 2) * 2)
    (tmp_path / "README.md").write_bytes(text)
    assert read_listings(tmp_path).label_names == ("cat", "dog", "owl")


# --- save_to_disk -----------------------------------------------------------------------------------------------------


def table(labels, first: int = 0) -> datasets.Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"image": rows(len(labels), first), "label": list(labels)}, features=features)


def test_a_folder_written_by_save_to_disk_is_read(tmp_path, preprocessing):
    saved = datasets.DatasetDict({"train": table((2, 0, 1)), "val": table((0, 1), 10), "test": table((1,), 20)})
    saved.with_format("torch").save_to_disk(tmp_path / "task")
    splits = load_splits(tmp_path / "task", preprocessing)
    assert splits.label_names == ("cat", "dog", "owl")
    assert [split.labels.tolist() for split in (splits.train, splits.validation, splits.test)] == [
        [2, 0, 1],
        [0, 1],
        [1],
    ]
    image = preprocessing.apply(PIL.Image.fromarray(pixels(20)))
    assert torch.equal(whole(splits.test)[0], image)


def test_one_table_written_by_save_to_disk_has_no_splits(tmp_path):
    table([0, 1] * 10).select(range(1, 20)).save_to_disk(tmp_path / "task")
    listings = read_listings(tmp_path / "task")
    assert listings.sizes == {"train": 12, "validation": 3, "test": 4}
    assert "no test split; 4 of 19 images were split off" in listings.notes[0]


# --- metadata ---------------------------------------------------------------------------------------------------------


def put_images(folder: Path, *names: str) -> None:
    for position, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(pixels(position), "PNG"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_metadata_file_in_each_split_labels_the_images(tmp_path, kind, caplog):
    for split, labels in {"train": {"a.png": "owl", "x/b.png": "cat"}, "test": {"c.png": "cat"}}.items():
        put_images(tmp_path / split, *labels, "unnamed.png")
        if kind == "csv":
            lines = ["file_name,label", *(f"{name},{label}" for name, label in labels.items())]
        else:
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in labels.items()]
        (tmp_path / split / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    put_images(tmp_path / "val", "d.png")
    (tmp_path / "val" / "metadata.jsonl").write_text('{"file_name": "d.png", "label": "owl"}\n')
    listings = read_listings(tmp_path)
    assert listings.label_names == ("cat", "owl")
    named = [[Path(image["path"]).name for image in listing.images] for listing in listings.by_name().values()]
    assert named == [["a.png", "b.png"], ["d.png"], ["c.png"]]
    assert [listing.labels for listing in listings.by_name().values()] == [[1, 0], [1], [0]]
    assert listings.left_out["train"]["images that the metadata file does not name"] == 1
    assert "train/unnamed.png" in caplog.text


def test_one_metadata_file_names_the_split_by_folder_or_column(tmp_path):
    put_images(tmp_path / "a", *(f"{split}/{index}.png" for split in ("train", "test") for index in range(4)))
    lines = [f"{split}/{index}.png,{index % 2 + 5}" for split in ("train", "test") for index in range(4)]
    (tmp_path / "a" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    listings = read_listings(tmp_path / "a")
    assert listings.label_names == ("5", "6") and listings.sizes == {"train": 2, "validation": 2, "test": 4}
    put_images(tmp_path / "b", *(f"{index}.png" for index in range(8)))
    lines = [f"{index}.png,{index % 2},{'train' if index < 6 else 'test'}" for index in range(8)]
    (tmp_path / "b" / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]) + "\n")
    assert read_listings(tmp_path / "b").sizes == {"train": 4, "validation": 2, "test": 2}
    lines = [line.rpartition(",")[0] for line in lines]
    (tmp_path / "b" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    assert read_listings(tmp_path / "b").sizes == {"train": 4, "validation": 2, "test": 2}
    assert "no test split; 2 of 8 images" in read_listings(tmp_path / "b").notes[0]


def test_a_metadata_file_cannot_lead_out_of_its_folder(tmp_path, preprocessing):
    put_images(tmp_path, "secret.png", "task/train/1.png")
    (tmp_path / "task/train/metadata.csv").write_text("file_name,label\n../../secret.png,cat\n1.png,dog\n")
    refused(tmp_path / "task", preprocessing, "cannot read the dataset")


# --- columns and labels -----------------------------------------------------------------------------------------------


def write_plain(folder: Path, image, label, splits=("train", "validation", "test")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for position, split in enumerate(splits):
        encoded = [row["bytes"] for row in rows(3, 10 * position)]
        pq.write_table(pa.table({"photo": image(encoded), "label": label(split)}), folder / f"{split}.parquet")


def structs(encoded, kind=(pa.binary, pa.string)):
    kind = pa.struct([("bytes", kind[0]()), ("path", kind[1]())])
    return pa.array([{"bytes": one, "path": None} for one in encoded], kind)


@pytest.mark.parametrize(
    ("image", "found_alone"),
    [
        (lambda encoded: pa.array(encoded, pa.binary()), False),
        (lambda encoded: pa.array(encoded, pa.large_binary()), False),
        (structs, True),
        (lambda encoded: structs(encoded, (pa.large_binary, pa.large_string)), True),
    ],
)
def test_images_in_plain_columns_of_bytes_are_read(tmp_path, preprocessing, image, found_alone):
    write_plain(tmp_path / "task", image, lambda _: pa.array([0, 1, 1]))
    splits = load_splits(tmp_path / "task", preprocessing, image_column="photo")
    expected = preprocessing.apply(PIL.Image.fromarray(pixels(1)))
    assert torch.equal(whole(splits.train)[1], expected)
    if found_alone:
        assert load_splits(tmp_path / "task", preprocessing).fingerprint == splits.fingerprint
    else:
        refused(
            tmp_path / "task", preprocessing, "no column of encoded images; .*photo .*Name the right one by image_"
        )


@pytest.mark.parametrize(
    ("train", "test", "values", "names"),
    [
        (pa.int64(), pa.int32(), [7, 3, 3], ("3", "7")),
        (pa.uint8(), pa.int64(), [7, 3, 3], ("3", "7")),
        (pa.string(), pa.large_string(), ["b", "a", "a"], ("a", "b")),
    ],
)
def test_labels_are_alike_whatever_the_width_of_their_type(tmp_path, preprocessing, train, test, values, names):
    write_plain(tmp_path / "task", structs, lambda split: pa.array(values, test if split == "test" else train))
    splits = load_splits(tmp_path / "task", preprocessing)
    assert splits.label_names == names
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == [1, 0, 0]


def test_numbers_and_texts_are_not_alike(tmp_path, preprocessing):
    write_plain(
        tmp_path / "task",
        structs,
        lambda split: pa.array(["1", "2", "2"]) if split == "test" else pa.array([1, 2, 2]),
    )
    refused(tmp_path / "task", preprocessing, "labels of the test split differ .*: string against int64")


# --- what a download may lack, and what lies beside a dataset ---------------------------------------------------------


def test_a_missing_shard_is_refused(tmp_path, preprocessing):
    for shard in (0, 2):
        put_parquet(tmp_path / "task", f"data/train-0000{shard}-of-00003-{HASH}.parquet", shard)
    refused(tmp_path / "task", preprocessing, "holds 2 of 3 shards of train: the one numbered 1 is missing")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_a_pointer_of_git_lfs_is_named_so(tmp_path, preprocessing):
    put_parquet(tmp_path / "task", "train.parquet", 0)
    (tmp_path / "task" / "test.parquet").write_bytes(POINTER)
    refused(tmp_path / "task", preprocessing, "test.parquet cannot be read: it is a pointer of Git LFS")
    folder = write_image_folder(tmp_path / "folder")
    (folder / "train" / "ant" / "0.png").write_bytes(POINTER)
    refused(folder, preprocessing, "0.png. cannot be used: it is a pointer of Git LFS and not the file itself")


def test_parquet_files_are_known_in_any_case_and_in_folders_called_so(tmp_path):
    put_parquet(tmp_path / "a", "Train.Parquet", 0, (0, 1, 2, 0, 1, 2))
    put_parquet(tmp_path / "a", "TEST.PARQUET", 10)
    put_parquet(tmp_path / "b", f"train.parquet/part-00000-{HASH}-c000.snappy.parquet", 0, (0, 1, 2, 0, 1, 2))
    put_parquet(tmp_path / "b", f"test.parquet/part-00000-{HASH}-c000.snappy.parquet", 10)
    assert read_listings(tmp_path / "a").sizes == read_listings(tmp_path / "b").sizes
    assert len(read_listings(tmp_path / "a").test) == 3


def test_splits_configs_and_images_that_are_not_read_are_said(tmp_path):
    put_parquet(tmp_path, "train.parquet", 0, (0, 1, 2, 0, 1, 2))
    put_parquet(tmp_path, "extra.parquet", 10)
    put_parquet(tmp_path, "fine/train.parquet", 20)
    write_image_folder(tmp_path)
    notes = read_listings(tmp_path).notes
    assert notes[:5] == (
        "the split 'extra' was not read",
        "the config 'fine' was not read",
        "the folder 'test' with its 4 images was not read",
        "the folder 'train' with its 4 images was not read",
        "the folder 'val' with its 4 images was not read",
    )


@pytest.mark.parametrize("inside", ["", "archive"])
def test_splits_that_were_saved_one_by_one_are_read(tmp_path, preprocessing, inside):
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    for split, first in (("train", 0), ("test", 10)):
        table = datasets.Dataset.from_dict({"image": rows(6, first), "label": [0, 1, 2] * 2}, features=features)
        table.save_to_disk(tmp_path / "task" / inside / split)
    listings = read_listings(tmp_path / "task")
    assert listings.sizes == {"train": 3, "validation": 3, "test": 6} and listings.label_names == tuple(NAMES)
    if not inside:
        refused(tmp_path / "task", preprocessing, "has no configs. Leave dataset_config 'x' out", dataset_config="x")


@pytest.mark.parametrize("missing", [None, "", " "])
def test_a_text_without_letters_is_no_label(tmp_path, preprocessing, missing):
    put_parquet(tmp_path / "task", "train.parquet", 0, ["cat", "dog"] * 3, Value("string"))
    put_parquet(tmp_path / "task", "test.parquet", 10, [missing] * 3, Value("string"))
    assert read_listings(tmp_path / "task").test is None
    put_parquet(tmp_path / "task", "train.parquet", 0, ["cat", "dog", missing], Value("string"))
    refused(tmp_path / "task", preprocessing, "image 2 of the train split of .* has the label None")


def test_whole_numbers_stored_as_floats_for_a_missing_one_are_explained(tmp_path, preprocessing):
    put_parquet(tmp_path / "task", "train.parquet", 0, [0.0, 1.0, None, 1.0], Value("float64"))
    refused(
        tmp_path / "task", preprocessing, r"holds float64 \(1 are missing, so whole numbers are stored as floats\)"
    )


def test_a_label_that_resembles_one_of_the_training_images_is_named_with_it(tmp_path, preprocessing):
    put_parquet(tmp_path / "task", "train.parquet", 0, ["cat", "dog"] * 2, Value("string"))
    put_parquet(tmp_path / "task", "test.parquet", 10, ["Cat", "dog"], Value("string"))
    refused(
        tmp_path / "task", preprocessing, "label 'Cat', which no training image has. It differs from 'cat' in case"
    )


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_column_of_a_folder_that_has_none_is_refused(tmp_path, preprocessing, option):
    folder = write_image_folder(tmp_path / "folder")
    refused(folder, preprocessing, f"has no column 'breed'. Leave {option} out", **{option: "breed"})


def metadata(folder: Path, lines: list[str]) -> Path:
    for line in lines[1:]:
        image = folder / line.split(",")[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(encode(pixels(sum(map(ord, image.name)), 4, 4)))
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


TEN = [f"{index}.png,{'ab'[index % 2]}" for index in range(10)]


def test_repeated_rows_of_a_metadata_file_are_counted_and_two_labels_refused(tmp_path, preprocessing):
    folder = metadata(tmp_path / "task", ["file_name,label", *TEN, TEN[3], f"./{TEN[4]}"])
    listings = read_listings(folder)
    assert sum(listings.sizes.values()) == 10
    assert listings.left_out == {"train": {"rows that repeat another": 2}}
    metadata(folder, ["file_name,label", *TEN, "3.png,a"])
    refused(folder, preprocessing, "gives 3.png two labels, 'b' and 'a'. Keep the row that is right")


def test_a_metadata_file_without_labels_names_its_columns(tmp_path, preprocessing):
    folder = metadata(tmp_path / "task", ["file_name,Breed", *TEN])
    refused(folder, preprocessing, r"no column 'label' \(its columns are file_name, Breed\). Name .* by label_column")
    refused(folder, preprocessing, r"no column 'breed' \(its columns are file_name, Breed\)", label_column="breed")
    assert read_listings(folder, label_column="Breed").label_names == ("a", "b")


def test_a_metadata_file_without_labels_beside_class_folders_is_said(tmp_path):
    folder = write_image_folder(tmp_path)
    (folder / "metadata.csv").write_text("file_name,caption\ntrain/ant/0.png,an ant")
    listings = read_listings(folder)
    assert listings.label_names == ("ant", "owl")
    assert (
        "no column 'label' (its columns are file_name, caption), so the folders are the classes" in listings.notes[0]
    )


def test_images_without_a_metadata_file_beside_those_with_one_are_said(tmp_path):
    metadata(tmp_path / "train", ["file_name,label", *TEN])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.png").write_bytes(encode(pixels(1, 4, 4)))
    listings = read_listings(tmp_path)
    assert listings.left_out == {"train": {}} and listings.notes[0] == "the folder 'test' was not read"


def test_a_readme_without_yaml_is_not_handed_to_the_hubs_client_which_would_warn(tmp_path, monkeypatch, caplog):
    for split in ("train", "test"):
        put_parquet(tmp_path, f"{split}.parquet", 0, (0, 1, 2) * 2)
    (tmp_path / "README.md").write_text("# Just words\n")
    monkeypatch.setattr("peft_noah.data.parquet_folders.DatasetCard.load", lambda *args, **kwargs: 1 / 0)
    assert read_listings(tmp_path).label_names == ("cat", "dog", "owl")
    assert "cannot be read" not in caplog.text
