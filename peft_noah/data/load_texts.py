"""Where a run's texts come from: parquet, CSV and JSON files, datasets saved to disk, the Hub."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

import datasets

from peft_noah.data.dataset_errors import reading
from peft_noah.data.listings import Listing, Listings, check_shots
from peft_noah.data.parquet_folders import parquet_files
from peft_noah.data.split_names import check_names, is_split_name, pick, unread
from peft_noah.data.splits import Splits, count_shared
from peft_noah.data.table_columns import find_label_columns, find_text_column, find_text_columns
from peft_noah.data.table_files import is_hub_id, is_one_table, is_saved_to_disk, read_tables
from peft_noah.data.table_labels import encode_labels
from peft_noah.data.texts import encode_split
from peft_noah.data.tokenization import Tokenization
from peft_noah.sources import check_given

#: what stands between the fields of a row, by the ending of the file
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
#: how a file of each ending is read by `datasets`
_READERS: dict[str, Any] = {
    # an empty cell is an empty text, and so are "NA" and "null", which people write
    ".csv": lambda file: datasets.Dataset.from_csv(file, keep_default_na=False),
    ".tsv": lambda file: datasets.Dataset.from_csv(file, sep="\t", keep_default_na=False),
    ".json": datasets.Dataset.from_json,
    ".jsonl": datasets.Dataset.from_json,
    ".parquet": datasets.Dataset.from_parquet,
}


def load_text_splits(source: str | os.PathLike[str], tokenization: Tokenization, **options: Any) -> Splits:
    """Train, validation and test splits of a labelled text dataset, tokenised once.

    Args:
        source: a folder, a file, or a Hub id; what it may hold is said in `read_text_listings`.
        tokenization: the run's tokenizer and greatest length.
        **options: which columns, splits and shots: the keyword arguments of `read_text_listings`.

    Raises:
        ValueError: as `read_text_listings`; or a text is missing or empty.
    """
    listings = read_text_listings(source, **options)
    listings.log_summary()
    listings.warn_of_unseen_classes()
    encoded = {
        name: encode_split(listing.images, listing.labels, tokenization, name=listing.split or name)
        for name, listing in listings.by_name().items()
    }
    return Splits(
        *(encoded.get(name) for name in ("train", "validation", "test")),
        label_names=listings.label_names,
        preprocessing=tokenization,
        source=listings.source,
        shared=count_shared(encoded, listings.source, "text"),
        summary=listings.summary(),
        notes=listings.notes,
    )


def read_text_listings(
    source: str | os.PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str | None = "test",
    validation_fraction: float = 0.2,
    seed: int = 0,
    shots: int | None = None,
    num_classes: int | None = None,
    dataset_config: str | None = None,
) -> Listings:
    """Which texts of a labelled dataset, with which labels, are in which split.

    A folder holds one file for each split (`train.csv`, `validation.jsonl`, `test.parquet`, ...), or a single file, or a
    dataset saved by `save_to_disk`, or parquet files as a Hub repository has them. A single file may be given itself. Where
    its column `split` does not say otherwise, a fifth of its texts of every class becomes the test split. Anything that
    does not exist here is a dataset's Hub id.

    Args:
        source: a folder, a file, or a Hub id.
        text_column: the column of texts; None: `text`, else the only column of texts beside the labels.
        label_column: the column of classes; found by its type, or the name `label`, where None.
        train_split, validation_split, test_split, validation_fraction, seed, shots, num_classes, dataset_config: as in
            `peft_noah.data.load.read_listings`.

    Raises:
        ValueError: source, split or column is missing or ambiguous; a split is empty; there are fewer than two classes; a
            label is missing or out of range or its names differ over splits.
    """
    names = {"train": train_split, "validation": validation_split, "test": test_split}
    check_names(names)
    check_shots(shots)
    check_given(source, "dataset")
    tables, others, unsplit = _tables(source, names, dataset_config)
    columns = find_label_columns(tables, label_column)
    texts = find_text_columns(tables, text_column, columns)
    label_names, labels = encode_labels(tables, columns, num_classes, "text")
    found = {name: Listing(table[texts[name]][:], labels[name]) for name, table in tables.items()}
    listings = Listings(
        found["train"],
        found.get("validation"),
        found.get("test"),
        label_names,
        str(source),
        notes=tuple(f"{other} was not read" for other in others),
        what="text",
    )
    return (listings.as_unsplit() if unsplit else listings).completed(validation_fraction, seed, shots)


def read_texts(file: Path, text_column: str | None = None) -> list[Any]:
    """The texts of a file, without labels: of a .txt each line, of a table its column of texts.

    Args:
        file: a .txt, or what `read_text_listings` reads.
        text_column: as there; a column `label` is none of texts.

    Raises:
        ValueError: the file cannot be read, or has no such column.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}. Give files that end in .txt, {', '.join(_READERS)}.")
    if file.suffix.lower() == ".txt":
        try:
            lines = file.read_text(encoding="utf-8-sig").split(
                "\n"
            )  # `splitlines` would cut a text at other signs too
            return lines if lines[-1] else lines[:-1]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} cannot be read ({error}). Save it as UTF-8.") from error
    table = _read(_files(file)[0])
    return table[find_text_column(table.features, file.name, text_column, "label")][:]


def _tables(
    source: str | os.PathLike[str], names: Mapping[str, str | None], config: str | None
) -> tuple[dict[str, datasets.Dataset], list[str], bool]:
    """The table of each of our splits, what is not read, and whether all is one table without splits."""
    path = Path(source).expanduser()
    if not path.exists() and not is_hub_id(source):
        raise ValueError(
            f"there is no folder or file {str(source)!r}. Give one of parquet, CSV or JSON files, or a dataset's Hub id."
        )
    files = _files(path)
    if len(files) == 1 and not is_split_name(path_stem := files[0].stem) and path_stem != names["train"]:
        return _of_one_file(path, files[0], names)
    if not path.is_dir() or is_saved_to_disk(path) or config is not None or parquet_files(path):
        tables, others = read_tables(source, names, config)
        return tables, others, path.is_dir() and is_one_table(path)
    if not files:
        raise ValueError(
            f"{path} holds no texts: there is no file that ends in {', '.join(_READERS)}. Give a folder with train.csv and "
            "test.csv, say, or a single file, each with the columns text and label."
        )
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_name[file.stem].append(file)
    if doubled := [name for name, of_split in by_name.items() if len(of_split) > 1]:
        raise ValueError(
            f"{path} has the split {doubled[0]!r} twice: {' and '.join(one.name for one in by_name[doubled[0]])}. Keep one."
        )
    available = {name: of_split[0] for name, of_split in by_name.items()}
    picked = pick(available, names, path)
    others = [f"the file {available[name].name!r}" for name in unread(available, picked)]
    return {ours: _read(file) for ours, file in picked.items()}, others, False


def _files(path: Path) -> list[Path]:
    """The files of texts in a folder; a file itself."""
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise ValueError(f"{path} is no file of texts that can be read: allowed are {', '.join(_READERS)}.")
        return [path]
    below = sorted(path.iterdir()) if path.is_dir() and not is_saved_to_disk(path) else []
    plain = [file for file in below if file.is_file() and not file.name.startswith(".")]
    return [file for file in plain if file.suffix.lower() in _READERS]


def _of_one_file(
    source: Path, file: Path, names: Mapping[str, str | None]
) -> tuple[dict[str, datasets.Dataset], list[str], bool]:
    """The splits of a table by its column `split`; without one, all of it is called the training split."""
    table = _read(file)
    if "split" not in table.features:
        return {"train": table}, [], True
    rows: dict[str, list[int]] = defaultdict(list)
    for row, split in enumerate(table["split"][:]):
        if split is None or not str(split).strip():
            raise ValueError(
                f"row {row} of {file} names no split. Name the split of every text, or remove the column."
            )
        rows[str(split)].append(row)
    tables = {split: table.select(chosen) for split, chosen in rows.items()}
    picked = pick(tables, names, source)
    others = [f"the split {name!r} with its {len(tables[name]):,} texts" for name in unread(tables, picked)]
    return picked, others, False


def _read(file: Path) -> datasets.Dataset:
    if (separator := _SEPARATORS.get(file.suffix.lower())) is not None:
        _check_rows(file, separator)
    with reading(file.parent, file.name, "parquet, CSV or JSON files"):
        return _READERS[file.suffix.lower()](escape(os.path.abspath(file)))


def _check_rows(file: Path, separator: str) -> None:
    """Refuse a table whose rows have more or fewer fields than its header, which pandas would shift or fill.

    Raises:
        ValueError: names the row.
    """
    limit = csv.field_size_limit(2**31 - 1)  # a text may be long
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            rows = (row for row in csv.reader(opened, delimiter=separator) if row)
            header, count = next(rows, []), 0
            for count, row in enumerate(rows, 1):
                if len(row) != len(header):
                    raise ValueError(
                        f"row {count} of {file} has {len(row)} fields, and its header {len(header)}. Put quotes around a text "
                        f"that holds {separator!r}, a quote or a line break."
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({error}). Save it as UTF-8.") from error
    finally:
        csv.field_size_limit(limit)
    if not count:
        raise ValueError(f"{file} has no rows of texts. Give at least one labelled text of each class.")
