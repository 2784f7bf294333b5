"""Splits that come as lists of image paths and labels, beside folders of images.

VTAB-1k as it circulates: `train800.txt`, `val200.txt`, `train800val200.txt`, `test.txt`, each line `path label`.
Few-shot as the NOAH authors list it: `annotations/train_meta.list.num_shot_<k>.seed_<s>`, `val_meta.list`,
`test_meta.list`, each line `path label`. Few-shot as CoOp lists it: `split_zhou_<Name>.json` with `train`, `val` and
`test`, each a list of `[path, label, class name]`.

A list is read as untrusted text: no path may lead out of the task's folder, nothing is opened but regular files.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_noah.data.listings import Listing

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 256 * 1024**2
MAX_CLASSES = 100_000
MAX_PATH = 4_096

_META = "train_meta.list"
_PER_SHOT = re.compile(r"train_meta\.list\.num_shot_(\d+)\.seed_(\d+)")


@dataclass(frozen=True)
class Entry:
    """One line of a list: an image, its class, and where it says so."""

    path: str
    label: int
    where: str
    name: str | None = None


def find_lists(folder: Path, shots: int | None = None, seed: int = 0) -> dict[str, Path]:
    """The list files of a task's folder by split, named `train`, `validation` and `test` or as the files are.

    Args:
        folder: of one task.
        shots: training images per class, where the folder has a list for each number; None: the list of all.
        seed: which of the lists of `shots`.

    Returns:
        Nothing where the folder holds no lists.

    Raises:
        ValueError: the folder has lists for numbers of shots, but not for these.
    """
    annotations = folder / "annotations"
    metas = sorted(annotations.glob("*_meta.list*")) if annotations.is_dir() else []
    if metas:
        return _find_metas(folder, {path.name: path for path in metas}, shots, seed)
    if len(found := sorted(folder.glob("split_*.json"))) == 1:
        return dict.fromkeys(("train", "validation", "test"), found[0])
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    # A folder of images by split and class may hold lists of its own, without labels.
    by_folder = _has_folders(folder / "train") and (_has_folders(folder / "test") or not _has_labels(lists))
    plain = set() if by_folder else {"train", "test"}
    return lists if (plain | {"train800", "train800val200"}) & set(lists) else {}


def _has_labels(lists: Mapping[str, Path]) -> bool:
    """Whether the first line of a training list ends in a number."""
    if "train" not in lists or not lists["train"].is_file():
        return False
    with open(lists["train"], "rb") as file:
        return re.search(rb"\s-?[0-9]+\s*$", file.readline(MAX_PATH)) is not None


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in os.scandir(folder))


def _find_metas(folder: Path, files: Mapping[str, Path], shots: int | None, seed: int) -> dict[str, Path]:
    found = {}
    drawn = {tuple(map(int, match.groups())): files[name] for name in files if (match := _PER_SHOT.fullmatch(name))}
    if shots is not None and drawn:
        if (shots, seed) not in drawn:
            raise ValueError(
                f"{folder / 'annotations'} has no list for {shots} shots with seed {seed}; it has (shots, seed) "
                f"{', '.join(map(str, sorted(drawn)))}. Choose one of them."
            )
        found["train"] = drawn[shots, seed]
    elif _META in files:
        found["train"] = files[_META]
    elif drawn:
        raise ValueError(
            f"{folder / 'annotations'} has training lists for {', '.join(map(str, sorted({k for k, _ in drawn})))} "
            "shots and none of all images. Give shots."
        )
    if "test_meta.list" in files:
        found["test"] = files["test_meta.list"]
        if "val_meta.list" in files:
            found["validation"] = files["val_meta.list"]
    elif "val_meta.list" in files:  # ImageNet and its variants: what is validated on officially is the test set
        found["test"] = files["val_meta.list"]
        if held_out := sorted((folder / "annotations").glob("unofficial_val_list*")):
            found["validation"] = held_out[0]
    return found


def read_entries(file: Path, split: str, num_classes: int | None = None) -> list[Entry]:
    """The lines of a list.

    A line that repeats another is dropped, with a warning that counts them: the authors' lists of Oxford-Pets hold every
    image twice.

    Args:
        file: a text file with one `path label` a line, or CoOp's JSON.
        split: which part of a JSON file: `train`, `validation` or `test`.
        num_classes: labels from here on are refused; None: from 100,000 on.

    Raises:
        ValueError: the list cannot be read, a line is malformed, a label is out of range, a path is absolute or leads
            out of the folder, or an image has two labels; list and line are named.
    """
    lines = _json_lines(file, split) if file.suffix == ".json" else _text_lines(file)
    limit = MAX_CLASSES if num_classes is None else num_classes
    seen: dict[str, Entry] = {}
    repeated = 0
    for path, label, where, name in lines:
        entry = Entry(_inside(path, where), _label(label, limit, where, path), where, name)
        first = seen.setdefault(entry.path, entry)
        if first.label != entry.label:
            raise ValueError(
                f"{entry.where} gives {entry.path!r} the label {entry.label}, but {first.where} gives it {first.label}. "
                "Keep the line that is right."
            )
        repeated += first is not entry
    if repeated:
        logger.warning("%s: %d of %d lines repeat another and are left out", file, repeated, repeated + len(seen))
    return list(seen.values())


def _text_lines(file: Path) -> Iterable[tuple[str, str, str, None]]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        parts = line.strip().rsplit(maxsplit=1)  # names of images may hold spaces
        if len(parts) != 2:
            raise ValueError(
                f"{where} is {line.strip()[:80]!r}: expected the path of an image, a space and its label."
            )
        yield parts[0], parts[1], where, None


def _json_lines(file: Path, split: str) -> Iterable[tuple[str, object, str, str | None]]:
    key = {"validation": "val"}.get(split, split)
    try:
        data = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}). Was it cut short? Download it anew.") from error
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{file} has no list {key!r}: expected train, val and test, as CoOp's split_zhou files have.")
    for number, row in enumerate(rows):
        where = f"entry {number} of {key!r} in {file}"
        if not (isinstance(row, list) and 2 <= len(row) <= 3 and isinstance(row[0], str)):
            raise ValueError(f"{where} is {str(row)[:80]!r}: expected [path, label, class name].")
        yield row[0], row[1], where, str(row[2]) if len(row) == 3 else None


def _read(file: Path) -> str:
    try:
        if not file.is_file():
            raise ValueError(f"there is no list {file}. Add it, or give another folder.")
        if file.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"{file} has more than {MAX_LIST_BYTES:,} bytes, and no list of images is that long.")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text ({error}). Expected one 'path label' a line.") from error


def _inside(path: str, where: str) -> str:
    if len(path) > MAX_PATH:
        raise ValueError(
            f"{where} names a path of {len(path):,} letters, {path[:80]!r}...: at most {MAX_PATH:,} are allowed."
        )
    parts = re.split(r"[/\\]", path)
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in path:
        raise ValueError(
            f"{where} names {path!r}, which is absolute or leads out of the task's folder: this is refused. Give a path "
            "relative to that folder."
        )
    if "\\" in path and "/" not in path:  # written on Windows
        return "/".join(part for part in parts if part not in ("", "."))
    return path if not {"", "."} & set(parts) else "/".join(part for part in parts if part not in ("", "."))


def _label(label: object, limit: int, where: str, path: str) -> int:
    number = int(label) if isinstance(label, str) and re.fullmatch(r"-?[0-9]{1,18}", label) else label
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{where} gives {path!r} the label {repr(label)[:40]}: expected a whole number from 0.")
    if not 0 <= number < limit:
        raise ValueError(
            f"{where} gives {path!r} the label {str(number)[:80]}: allowed are 0 to {limit - 1}. Repair the label."
        )
    return number


def list_images(entries: Sequence[Entry], folder: Path) -> Listing:
    """The images of a list, looked up below the task's folder.

    Paths are relative to the folder, or to one below it (`images/`, `jpg/`, `train/`, ...): the one that has most of a
    sample of them. ImageNet's validation images are also found by their names one folder deeper, by class.

    Raises:
        ValueError: an image is missing; list, line and image are named.
    """
    base = _find_base(entries, folder)
    nested: dict[str, str] | None = None
    images = []
    for entry in entries:
        path = os.path.join(base, entry.path)
        if not os.path.isfile(path):
            if nested is None and _is_imagenets(entry.path):
                nested = _one_deeper(base)
            path = (nested or {}).get(entry.path, path)
            if not os.path.isfile(path):
                raise ValueError(
                    f"{entry.where} names the image {entry.path!r}, which is not in {base}. Add the image, or remove "
                    "the line."
                )
        images.append({"bytes": None, "path": path})
    return Listing(images, [entry.label for entry in entries])


def _find_base(entries: Sequence[Entry], folder: Path) -> str:
    sample = entries[:: max(1, len(entries) // 16)]
    best, most = str(folder), 0
    for base in _bases(folder):
        found = sum(
            os.path.isfile(os.path.join(base, entry.path))
            or (_is_imagenets(entry.path) and _is_deeper(base, entry.path))
            for entry in sample
        )
        if found > most:
            best, most = base, found
        if found == len(sample):
            break
    return best


def _bases(folder: Path) -> Iterable[str]:
    """The folder, its `images`, then whatever lies one below these, in order of name."""
    first = [path for path in (folder, folder / "images") if path.is_dir()]
    yield from map(str, first)
    for parent in first:
        yield from sorted(entry.path for entry in os.scandir(parent) if entry.is_dir())


def _is_imagenets(name: str) -> bool:
    # ILSVRC2012_val_00000293.JPEG lies in val/<class>/; nothing else that circulates is flat in its list only.
    return name.startswith("ILSVRC2012_val_")


def _is_deeper(base: str, name: str) -> bool:
    return any(os.path.isfile(os.path.join(entry.path, name)) for entry in os.scandir(base) if entry.is_dir())


def _one_deeper(base: str) -> dict[str, str]:
    folders = sorted(entry.path for entry in os.scandir(base) if entry.is_dir())
    return {entry.name: entry.path for folder in folders for entry in os.scandir(folder)}


def name_classes(lists: Iterable[Sequence[Entry]]) -> tuple[str, ...]:
    """The name of every class from 0 to the largest label of any list.

    The lists' own names where they have them (CoOp's); else the folder that all images of a class, and of no other,
    lie in (`apple_pie`, `n01440764`); else the label as a number.

    Raises:
        ValueError: two lists name a class differently.
    """
    entries = [entry for of_split in lists for entry in of_split]
    count = 1 + max((entry.label for entry in entries), default=0)
    given: dict[int, Entry] = {}
    for entry in entries:
        first = given.setdefault(entry.label, entry)
        if entry.name is not None and first.name != entry.name:
            raise ValueError(
                f"{entry.where} names class {entry.label} {entry.name!r}, but {first.where} {first.name!r}."
            )
    folders: dict[int, set[str]] = {label: set() for label in given}
    for entry in entries:
        folders[entry.label].update(entry.path.split("/")[-2:-1])  # nothing for an image listed without a folder
    if missing := count - len(given):
        logger.warning("%d of %d classes have no image in any list; is a label wrong?", missing, count)
    elif all(entry.name for entry in given.values()):
        return tuple(given[label].name for label in range(count))
    elif all(len(names) == 1 for names in folders.values()):
        names = tuple(next(iter(folders[label])) for label in range(count))
        if len(set(names)) == count:
            return names
    return tuple(map(str, range(count)))
