"""Labelled texts: tokenised once, padded batch by batch, read from files of any usual kind."""

import json

import datasets
import pytest
import torch
from text_models import PAD, make_config, write_text_model, write_texts
from torch.utils.data import DataLoader

from peft_noah.data.load_texts import load_text_splits, read_text_listings, read_texts
from peft_noah.data.texts import TextSplit
from peft_noah.data.tokenization import Tokenization

ROWS = [("good film", "yes"), ("bad film", "no"), ("a great book", "yes"), ("it was poor", "no"), ("fine", "yes")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def tokenization(bert):
    return Tokenization.from_backbone(bert)


def a_split(*texts, labels=None, **options):
    labels = range(len(texts)) if labels is None else labels
    return TextSplit([torch.tensor(ids, dtype=torch.int32) for ids in texts], torch.tensor([*labels]), PAD, **options)


def test_a_batch_is_padded_to_its_longest_text_and_its_mask_says_where():
    split = a_split([5], [6, 7, 8], [9, 4])
    batch = next(iter(DataLoader(split, 2, collate_fn=split.collate)))
    assert batch["input_ids"].tolist() == [[5, PAD, PAD], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert split.inputs(batch).keys() == {"input_ids", "attention_mask"}
    assert split[2]["input_ids"].tolist() == [9, 4] and split[-1]["labels"] == 2
    with pytest.raises(IndexError):
        split[3]


def test_splits_are_chosen_from_and_joined_with_their_texts_and_fingerprints():
    whole = a_split([5], [6, 7, 8], [9, 4])
    joined = whole.subset([2, 0]) + whole.subset([1])
    assert joined.__getitems__([0, 1, 2])["input_ids"].tolist() == [[9, 4, PAD], [5, PAD, PAD], [6, 7, 8]]
    assert joined.labels.tolist() == [2, 0, 1]
    assert whole.subset([2, 0, 1]).fingerprint == joined.fingerprint != whole.fingerprint
    assert a_split([5], [6]).fingerprint != a_split([5], [6], labels=[1, 0]).fingerprint
    assert (a_split([5], classes=[0, 2]) + a_split([6], classes=[0, 1])).classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("texts", "options", "fault"),
    [
        ([[5], []], {}, "text 1 has no token"),
        ([[5]], {"labels": [0, 1]}, "do not fit 1 texts"),
        ([[5]], {"classes": [1]}, "label 0 is not among the 1 classes"),
    ],
)
def test_a_split_that_cannot_be_is_refused(texts, options, fault):
    with pytest.raises(ValueError, match=fault):
        a_split(*texts, **options)


def test_a_text_is_cut_off_behind_the_most_tokens_with_its_special_ones(bert, tokenization):
    assert tokenization.max_tokens == 48  # of the backbone's positions, below 256
    assert tokenization.apply(["good film"])[0].tolist() == [2, 4, 10, 3]
    assert Tokenization.from_backbone(bert, 3).apply(["good film", "bad"])[0].tolist() == [2, 4, 3]
    for most in (49, 2):  # two are special
        with pytest.raises(ValueError, match=f"max_tokens is {most}; give a whole number from 3 to 48"):
            Tokenization.from_backbone(bert, most)


def test_a_backbone_without_tokenizer_or_padding_is_refused(tmp_path):
    make_config("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot read the tokenizer of .*there is none of tokenizer.json"):
        Tokenization.from_backbone(tmp_path)
    write_text_model(tmp_path / "model")
    for name in ("tokenizer_config.json", "config.json"):
        path = tmp_path / "model" / name
        gone = {"pad_token": None, "pad_token_id": None}
        path.write_text(json.dumps({**json.loads(path.read_text()), **gone, "eos_token": "[SEP]"}))
    assert Tokenization.from_backbone(tmp_path / "model").pad == 3  # what ends a text fills up, too
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(ValueError, match="names a token that fills up"):
        Tokenization.from_backbone(tmp_path / "model")


def write_csv(path, rows, header="text,label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_json(path, rows, array=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"text": text, "label": label} for text, label in rows]
    path.write_text(json.dumps(entries) if array else "\n".join(map(json.dumps, entries)) + "\n")


def write_table(rows):
    return datasets.Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


LAYOUTS = {
    "csv": lambda folder: [write_csv(folder / f"{split}.csv", ROWS) for split in ("train", "test")],
    "tsv": lambda folder: [
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *map("\t".join, ROWS)]))
        for split in ("train", "test")
    ],
    "json lines": lambda folder: [write_json(folder / f"{split}.jsonl", ROWS) for split in ("train", "test")],
    "json": lambda folder: [write_json(folder / f"{split}.json", ROWS, array=True) for split in ("train", "test")],
    "parquet": lambda folder: [
        write_table(ROWS).to_parquet(folder / f"{split}.parquet") for split in ("train", "test")
    ],
    "saved": lambda folder: datasets.DatasetDict(train=write_table(ROWS), test=write_table(ROWS)).save_to_disk(folder),
    "one file with splits": lambda folder: write_csv(
        folder / "reviews.csv", [(*row, split) for split in ("train", "test") for row in ROWS], "text,label,split"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_kind_of_file_gives_the_same_texts(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    listings = read_text_listings(tmp_path)
    assert listings.label_names == ("no", "yes") and listings.sizes == {"train": 3, "validation": 2, "test": 5}
    assert list(zip(listings.test.images, listings.test.labels, strict=True)) == [
        (text, int(label == "yes")) for text, label in ROWS
    ]


def test_a_single_file_is_split_class_by_class(tmp_path):
    write_csv(tmp_path / "reviews.csv", ROWS * 2)
    for source in (tmp_path, tmp_path / "reviews.csv"):
        listings = read_text_listings(source)
        assert listings.sizes == {"train": 6, "validation": 2, "test": 2}
        assert "no test split; 2 of 10 texts were split off" in listings.notes[0]


def test_splits_are_tokenised_with_their_labels_and_shared_texts_are_counted(tmp_path, tokenization, caplog):
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(tmp_path / "test.csv", [("good film", "yes"), ("very bad", "no")])
    splits = load_text_splits(tmp_path, tokenization)
    assert splits.to_dict()["preprocessing"] == {"max_tokens": 48, "pad": PAD, "source": tokenization.source}
    assert splits.test.labels.tolist() == [1, 0]
    assert splits.shared == {"test": 1} and "texts that occur in training too" in caplog.text
    assert splits.train.fingerprint == load_text_splits(tmp_path, tokenization).train.fingerprint


@pytest.mark.parametrize(
    ("files", "options", "fault"),
    [
        ({"notes.txt": "x"}, {}, "holds no texts"),
        ({"train.csv": "text,label\ngood,yes\n"}, {}, "the training texts of .* have one class only"),
        (
            {"train.csv": "text,label\ngood,yes\n,no\nbad,no\na,yes\n"},
            {},
            "text 1 of split 'train' cannot be used: it is empty",
        ),
        ({"train.csv": "text,label\ngood,yes\nbad,\nbad,no\n"}, {}, "text 1 of the train split .* has the label None"),
        ({"train.csv": "text,other\ngood,yes\nbad,no\n"}, {}, "no single column of labels.*label_column"),
        (
            {"train.csv": "a,b,label\ngood,x,yes\nbad,y,no\n"},
            {},
            "2 columns of texts.*Name the right one by text_column",
        ),
        ({"train.csv": "text,label\ngood,yes\nbad,no\n"}, {"text_column": "body"}, "no column 'body'"),
        (
            {"train.csv": "text,label\na,yes\nb,no\n", "train.json": "[]"},
            {},
            "the split 'train' twice: train.csv and train.json",
        ),
        (
            {"train.csv": "text,label\na,yes\nb,no\n", "test.csv": "text,label\na,maybe\n"},
            {},
            "'maybe', which no training text has",
        ),
        ({"a.csv": "text,label\na,yes\n", "b.csv": "text,label\na,yes\n"}, {}, "has no split 'train'; it has a, b"),
        (
            {"train.csv": "text,label\ngood, really,yes\nbad,no\n"},
            {},
            "row 1 of .*train.csv has 3 fields, and its header 2",
        ),
        ({"train.csv": "text,label\ngood\nbad,no\n"}, {}, "row 1 of .*train.csv has 1 fields, and its header 2"),
        ({"train.csv": "text,label\n"}, {}, "train.csv has no rows of texts"),
        ({"train.csv": "text,label\ngr\udcfcn,yes\n"}, {}, "train.csv cannot be read .*Save it as UTF-8"),
        ({"train.json": "{broken"}, {}, "cannot read the dataset .*train.json"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_a_sentence(files, options, fault, tmp_path, tokenization):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=fault):
        load_text_splits(tmp_path, tokenization, **options)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder or file '.*reviews.csv'"):
        read_text_listings(tmp_path / "reviews.csv")
    for file in (tmp_path, tmp_path / "new.txt"):
        with pytest.raises(ValueError, match=f"there is no file {file}. Give files that end in .txt, .csv"):
            read_texts(file)
    (tmp_path / "new.txt").write_bytes("gr\xfcn".encode("latin-1"))
    with pytest.raises(ValueError, match="new.txt cannot be read .*Save it as UTF-8"):
        read_texts(tmp_path / "new.txt")


def test_only_a_line_break_ends_a_text_of_a_file_of_lines(tmp_path):
    (tmp_path / "new.txt").write_bytes("\ufeffone\u2028still one\x0c\r\n\ntwo\n".encode())
    assert read_texts(tmp_path / "new.txt") == ["one\u2028still one\x0c", "", "two"]
    (tmp_path / "new.txt").write_bytes(b"one\ntwo")
    assert read_texts(tmp_path / "new.txt") == ["one", "two"]


def test_a_written_folder_of_texts_can_be_read(tmp_path, tokenization):
    splits = load_text_splits(write_texts(tmp_path), tokenization)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 12, 12)
