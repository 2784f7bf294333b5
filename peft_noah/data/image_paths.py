"""Images of which nothing is known but where they are: files, and folders that are searched."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from peft_noah.data.class_folders import is_not_data
from peft_noah.data.decoding import image_extensions


def find_images(paths: Iterable[str | os.PathLike[str]], left_out: Counter[str] | None = None) -> Iterator[str]:
    """Paths of image files: those given, and those at any depth below a given folder, in the order of their names.

    A file that is given is taken for an image whatever its name. In a folder, the end of a name decides, such as ``.png``.
    Hidden files and folders in it and folders of thumbnails and the like are left out, links are followed. No more than the names in the folders on the way to
    a file are held in memory.

    Args:
        paths: files and folders.
        left_out: counts by reason what lies in the folders and is not read.

    Raises:
        ValueError: if a path is neither a file nor a folder, or a folder cannot be read.
    """
    left_out = Counter() if left_out is None else left_out
    for path in map(os.fspath, paths):
        if os.path.isdir(path):
            yield from _below(path, left_out)
        elif os.path.isfile(path):
            yield path
        elif os.path.exists(path):
            raise ValueError(f"{path} is neither an image file nor a folder. Give files or folders.")
        else:
            raise ValueError(f"there is no file or folder {path!r}. Give image files, or folders that hold some.")


def _below(folder: str, left_out: Counter[str]) -> Iterator[str]:
    # the real paths on the way down: a link to one of them would lead in a circle
    stack = [(os.path.realpath(folder), iter(_entries(folder)))]
    while stack:
        entry = next(stack[-1][1], None)
        if entry is None:
            stack.pop()
        elif (reason := _why_not(entry)) is not None:
            left_out[reason] += 1
        elif not entry.is_dir():
            yield entry.path
        elif (real := os.path.realpath(entry.path)) in [above for above, _ in stack]:
            left_out["links to a folder above"] += 1
        else:
            stack.append((real, iter(_entries(entry.path))))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be read: {error.strerror}.") from error


def _why_not(entry: os.DirEntry[str]) -> str | None:
    """Why an entry of a folder is left out; None: it is a folder or an image."""
    if entry.name.startswith("."):
        return "hidden folders" if entry.is_dir() else "hidden files"
    if entry.is_dir():
        return f"folders named {entry.name}" if is_not_data(entry.name) else None
    if not entry.is_file():
        return "broken links" if entry.is_symlink() else "files of no regular kind"
    suffix = Path(entry.name).suffix.lower()
    if suffix in image_extensions():
        return None
    return f"{suffix} files" if suffix else "files without an extension"
