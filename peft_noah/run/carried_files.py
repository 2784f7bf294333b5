"""Files that go to another machine and come back: their contents by their place in a run folder, which a node makes anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peft_noah.jsonfile import write_atomically


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A run folder for one piece of work on a node, removed with it: Ray kills a process without a word, and would leave
    behind what all pieces have written."""
    with tempfile.TemporaryDirectory(prefix="peft-noah-", ignore_cleanup_errors=True) as place:
        yield Path(place)


def read_files(folder: Path, paths: Iterable[Path]) -> dict[str, bytes]:
    """Contents of those paths in a folder that are files, by their place in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what `read_files` gave, each file whole or not at all."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, content)
