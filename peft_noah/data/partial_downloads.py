"""Downloads that are not whole: pointers of Git LFS in place of files, and shards that are missing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

_POINTER = b"version https://git-lfs.github.com/spec/"
#: what is wrong with a file that `is_pointer`
POINTER = "it is a pointer of Git LFS and not the file itself (fetch the files by 'git lfs pull')"
_SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})(-[0-9a-f]+)?")


def is_pointer(content: bytes) -> bool:
    """Whether a file that begins with these bytes is what a clone without Git LFS has in its place."""
    return content.startswith(_POINTER)


def check_files(files: Sequence[Path]) -> None:
    """Refuse the files of a split of which some are missing or are pointers.

    Raises:
        ValueError: of the shards `<name>-00000-of-00003` and so on one is missing, or a file is a pointer of Git LFS.
    """
    found = defaultdict(set)
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            found[file.parent, match[1], int(match[3])].add(int(match[2]))
        with open(file, "rb") as opened:
            if is_pointer(opened.read(len(_POINTER))):
                raise ValueError(f"{file} cannot be read: {POINTER}.")
    for (folder, name, total), numbers in found.items():
        if len(numbers) < total:
            first = next(number for number in range(total) if number not in numbers)
            raise ValueError(
                f"{os.fspath(folder)} holds {len(numbers)} of {total} shards of {name}: the one numbered {first} is missing. "
                "Download the dataset again, or what is missing of it."
            )
