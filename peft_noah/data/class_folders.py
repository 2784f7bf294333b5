"""Images in folders by class: which folders are classes, which files are images, and what is left out and why.

The classes of a split are the folders directly in it, whatever their names; every image below such a folder is of its
class. Folders that a system or a program made are no data: those named in `NOT_DATA`, and below a class all hidden ones.
Links are followed, wherever they lead. Everything that is not read is counted by its reason.
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft_noah.data.class_names import composed
from peft_noah.data.decoding import image_extensions

logger = logging.getLogger(__name__)

#: folders that no person made as data, in any case of letters
NOT_DATA = (
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
    "thumbnails",
    "thumbs",
    ".appledouble",
    ".cache",
    ".git",
    ".ipynb_checkpoints",
    ".spotlight-v100",
    ".svn",
    ".thumb*",
    ".trash*",
)
_SHOWN = 3


@dataclass
class LeftOut:
    """What is not read: the paths by reason."""

    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def counts(self) -> dict[str, int]:
        """Number of files or folders by reason."""
        return {reason: len(paths) for reason, paths in self.paths.items()}

    def add(self, reason: str, path: str | os.PathLike[str]) -> None:
        """Note one file or folder."""
        self.paths[reason].append(os.fspath(path))

    def add_folder(self, path: str | os.PathLike[str]) -> None:
        """Note every file below a folder that is no data."""
        for folder, _, files in os.walk(path):
            for file in files:
                self.add(f"in folders named {os.path.basename(path)}", os.path.join(folder, file))

    def add_all(self, other: LeftOut) -> None:
        """Note all that another has noted."""
        for reason, paths in other.paths.items():
            self.paths[reason] += paths

    def log(self, split: str, source: str | os.PathLike[str]) -> None:
        """Say what was left out, with the first names of each kind."""
        if not self.paths:
            return
        kinds = []
        for reason, paths in self.paths.items():
            names = [os.path.relpath(path, source) for path in sorted(paths)[:_SHOWN]]
            more = ", ..." if len(paths) > _SHOWN else ""
            kinds.append(f"{len(paths):,} {reason} ({', '.join(names)}{more})")
        logger.warning("%s: left out of the %s split: %s", source, split, "; ".join(kinds))


@dataclass(frozen=True)
class ClassFolders:
    """The images of one split.

    Attributes:
        folder: of the split.
        files: paths of images by class, classes in order of their folders' names; an accent and its letter are one
            character in the name, as they are two on macOS only.
        loose: images directly in the split's folder, which belong to no class.
        left_out: what else is not read.
    """

    folder: Path
    files: Mapping[str, list[str]]
    loose: list[str]
    left_out: LeftOut

    def in_order(self) -> list[tuple[str, str]]:
        """Path and class of every image, in the order of paths."""
        return sorted((path, name) for name, paths in self.files.items() for path in paths)

    def subfolders(self) -> dict[str, set[str]]:
        """The names of the folders directly in each class folder that hold images; "" for those directly in it."""
        return {name: {self._subfolder(path) for path in paths} for name, paths in self.files.items()}

    def _subfolder(self, path: str) -> str:
        parts = Path(path).relative_to(self.folder).parts
        return parts[1] if len(parts) > 2 else ""


def is_not_data(name: str) -> bool:
    """Whether a folder of this name was made by a system or a program, not by a person as data."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in NOT_DATA)


def is_of_a_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run or a suite of this package, which may lie in the dataset's own folder."""
    folder = Path(folder)
    run = (folder / "settings.json").is_file() and (folder / ".locks").is_dir()
    return run or (folder / "suite.json").is_file()


def read_class_folders(folder: Path, split: str, skip: Collection[str] = ()) -> ClassFolders:
    """The images of a split by class.

    Args:
        folder: of the split.
        split: its name, for error messages.
        skip: folders directly in it that are no classes.

    Raises:
        ValueError: a class folder has files but no image, or is a link to nothing; it is named.
    """
    left, files, loose, lost = LeftOut(), {}, [], {}
    seen = {os.path.realpath(folder)}
    for entry in _entries(folder):
        if entry.name in skip:
            continue
        if not entry.is_dir():
            if (reason := _why_not(entry)) is None:
                loose.append(entry.path)
            else:
                _refuse_broken_class(entry, reason, split)
                left.add(reason, entry.path)
        elif is_not_data(entry.name) or is_of_a_run(entry.path):
            left.add_folder(entry.path)
        else:
            inside = LeftOut()
            images = list(find_images(entry.path, inside, seen))
            if not images and entry.name.startswith("."):  # of a program; with images it would be a class
                left.add_folder(entry.path)
                continue
            if images:
                files.setdefault(composed(entry.name), []).extend(images)
            elif inside.paths:
                lost[entry.path] = inside
            else:
                left.add("empty folders", entry.path)
            left.add_all(inside)
    if lost and files:
        _refuse_unreadable_class(*next(iter(lost.items())), split)
    return ClassFolders(folder, files, loose, left)


def _refuse_broken_class(entry: os.DirEntry, reason: str, split: str) -> None:
    """Refuse a broken link in place of a class folder; that of an image is left out as other files are."""
    if reason == _BROKEN and Path(entry.name).suffix.lower() not in image_extensions():
        raise ValueError(
            f"the class folder {entry.name!r} of the {split} split, {entry.path}, is a link to "
            f"{os.readlink(entry.path)}, which is not there. Repair the link, or remove it."
        )


def _refuse_unreadable_class(folder: str, inside: LeftOut, split: str) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in inside.counts.items())
    raise ValueError(
        f"the class folder {os.path.basename(folder)!r} of the {split} split, {folder}, has no image that can be read: "
        f"{reasons}. Allowed are {', '.join(sorted(image_extensions()))}. Convert its images, or remove the folder."
    )


def find_images(
    folder: str | os.PathLike[str], left_out: LeftOut, seen: set[str], but: Collection[Path] = ()
) -> Iterator[str]:
    """The images at any depth below a folder; whatever is none goes to `left_out`.

    Args:
        folder: where to look.
        left_out: what is not read is added to it.
        seen: real paths of folders that were read already, which are not read again; grows.
        but: files that are passed over and not counted.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            left_out.add("links to folders that are read already", here)
            continue
        seen.add(real)
        for entry in _entries(here):
            if not entry.is_dir():
                if (reason := _why_not(entry)) is None:
                    yield entry.path
                elif Path(entry.path) not in but:
                    left_out.add(reason, entry.path)
            elif is_not_data(entry.name) or entry.name.startswith("."):
                left_out.add_folder(entry.path)
            else:
                waiting.append(entry.path)


def count_files(folder: str | os.PathLike[str]) -> int:
    """Number of files below a folder, of any kind."""
    return sum(len(files) for _, _, files in os.walk(folder))


_BROKEN = "broken links"


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"the folder {os.fspath(folder)} cannot be read: {error.strerror}.") from error


def _why_not(entry: os.DirEntry) -> str | None:
    """Why a file is not read; None: it is an image."""
    if not entry.is_file():
        return _BROKEN if entry.is_symlink() else "files of no regular kind"
    if entry.name.startswith("."):
        return "hidden files"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in image_extensions():
        return None
    return f"{suffix} files" if suffix else "files without an extension"
