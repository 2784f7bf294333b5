"""Files that go to another machine and come back: their contents by their place in a run folder, which a node makes anew."""

from __future__ import annotations

import reprlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from peft_noah.jsonfile import refuse_link, write_atomically


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A run folder for one piece of work on a node, removed with it: Ray kills a process without a word, and would leave
    behind what all pieces have written."""
    with tempfile.TemporaryDirectory(prefix="peft-noah-", ignore_cleanup_errors=True) as place:
        yield Path(place)


def read_files(folder: Path, paths: Iterable[Path]) -> dict[str, bytes]:
    """Contents of those paths in a folder that are files, by their place in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def check_places(names: Iterable[str], places: Iterable[str]) -> None:
    """Refuse what comes back from a node and is no file that its work leaves, before any of it is written.

    Args:
        names: of files, by their place in the run folder.
        places: patterns of those that the work may leave; one that ends with ``/`` is a folder, and stands for all in it.

    Raises:
        ValueError: names the first file that lies elsewhere.
    """
    patterns = [place.split("/") for place in places]
    for name in names:
        parts = name.split("/")
        plain = not any(part in ("", ".", "..") or set(part) & {"\\", ":", "\0"} for part in parts)
        if not (plain and any(_lies_at(parts, pattern) for pattern in patterns)):
            raise ValueError(
                f"a node has left {reprlib.repr(name)}, which is no file of its work; nothing of it is written. Start Ray anew, with "
                "the same version of peft-noah on all machines."
            )


def _lies_at(parts: list[str], pattern: list[str]) -> bool:
    inside = pattern[-1] == ""
    fixed = pattern[:-1] if inside else pattern
    fits = len(parts) > len(fixed) if inside else len(parts) == len(fixed)
    return fits and all(map(fnmatchcase, parts, fixed))


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what `read_files` gave, each file whole or not at all.

    Raises:
        ValueError: a folder in it is a link.
    """
    for name, content in files.items():
        for parent in Path(name).parents[:-1]:
            refuse_link(folder / parent)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, content)
