"""Names of classes that look alike: the same letters in another case, with other spaces, or as another system stores them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

#: what folders of a dataset are called that hold its parts, and no class
_PARTS = frozenset(
    "image images img imgs photos pictures mask masks label labels annotation annotations trimaps segmentation bbox "
    "bboxes boxes depth gt groundtruth ground_truth metadata meta docs attributes parts".split()
)


def composed(name: str) -> str:
    """The name with one character for a letter and its accent: macOS stores the names of files with two."""
    return unicodedata.normalize("NFC", name)


def look_alike(name: str, known: Iterable[str]) -> str:
    """A sentence on the name among those known that differs in case, spaces or the coding of accents only; or nothing."""
    found = next((other for other in known if other != name and _plain(other) == _plain(name)), None)
    return "" if found is None else f" It differs from {found!r} in case, spaces or the coding of accents only."


def twins(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in case, spaces or the coding of accents only."""
    groups = defaultdict(list)
    for name in names:
        groups[_plain(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def are_parts(names: Iterable[str]) -> bool:
    """Whether all names are those of a dataset's parts, such as `images` and `masks`."""
    return all(name.lower() in _PARTS for name in names)


def _plain(name: str) -> str:
    return " ".join(composed(name).casefold().replace("_", " ").split())
