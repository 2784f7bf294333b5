"""The files of results of suites and runs: as they lie in folders, or packed into one JSON-lines file.

A packed file has one line per file of the folder, ``{"path": "<task>/seed0/results/lora.json", "data": {...}}``, in the
order of the paths. It holds all that tables and figures are made of, so they are the same from either.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from peft_noah.jsonfile import MAX_FILE_BYTES, build_named, check_keys, parse_json, read_json, write_atomically
from peft_noah.results.report import RESULTS_JSON, RunReport
from peft_noah.run.names import RESULTS, SEARCH

MAX_FILES = 50_000
MAX_BYTES = 512 * 1024**2  # of all files together; a cell has some kilobytes
MAX_PATH = 1_000
JSON_LINES = ".jsonl"

PLAN = "suite.json"
#: the kinds of files of results; SEARCH is one more
CELL, FAILED, REPORT = f"{RESULTS}/*.json", f"{RESULTS}/*.error.json", RESULTS_JSON
#: where they lie in the folder of a run or of a suite
_PLACES = (PLAN, REPORT, SEARCH, CELL, f"*/seed*/{SEARCH}", f"*/seed*/{CELL}")

#: a folder of a suite or a run, a JSON-lines file, or several of them
Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class ResultFile:
    """A file of results.

    Attributes:
        path: its path in its folder, with ``/`` between the parts.
        where: where it stands, for messages: a path, or a file and its line.
        content: what a line of a JSON-lines file holds; None where the file is read from the folder.
    """

    path: str
    where: str
    content: Mapping[str, object] | None = None

    @property
    def kind(self) -> str | None:
        """`PLAN`, `REPORT`, `SEARCH`, `CELL` or `FAILED`; None for any other file."""
        path = PurePosixPath(self.path)
        if path.parent.name == RESULTS and path.suffix == ".json":
            return FAILED if path.name.endswith(".error.json") else CELL
        return path.name if path.name in (PLAN, REPORT, SEARCH) else None

    def read(self) -> object:
        """The data in it.

        Raises:
            ValueError: the file cannot be read; the message names it.
        """
        return read_json(self.where) if self.content is None else self.content


def list_files(sources: Sources, *kinds: str) -> list[ResultFile]:
    """The files of some kinds, source by source in the order of their paths, so that neither the file system nor the
    machine decides the order of anything.

    Raises:
        ValueError: a source is missing or holds more than 50,000 files or 512 MiB; a line of a JSON-lines file is broken.
    """
    found: list[ResultFile] = []
    for source in as_list(sources):
        found += _in_lines(Path(source)) if Path(source).is_file() else _in_folder(Path(source))
    return [file for file in found if file.kind in kinds]


def pack(sources: Sources, path: str | os.PathLike[str]) -> None:
    """Write the files of results of suites or runs into one JSON-lines file, which tables are made from as well.

    Paths of several sources begin with the names of their folders.

    Args:
        sources: one folder, or a sequence of them.
        path: of the file to write, which ends in ``.jsonl``.

    Raises:
        ValueError: a source cannot be read or holds no results, two have the same name, or ``path`` ends otherwise.
        OSError: the file cannot be written.
    """
    sources = as_list(sources)
    if Path(path).suffix != JSON_LINES:
        raise ValueError(f"{os.fspath(path)} does not end in {JSON_LINES}, as a JSON-lines file does. Name it so.")
    names = [Path(source).resolve().name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several folders are named {twice[0]!r}: rename them, so that their lines can be told apart."
        )
    lines = []
    for source, name in zip(sources, names, strict=True):
        prefix = f"{name}/" if len(sources) > 1 else ""
        for file in list_files(source, PLAN, REPORT, SEARCH, CELL, FAILED):
            lines.append(json.dumps({"path": f"{prefix}{file.path}", "data": file.read()}, allow_nan=False) + "\n")
    if not lines:
        raise ValueError(f"no results in {', '.join(map(os.fspath, sources))}. Name the folder of a suite or a run.")
    write_atomically(path, "".join(lines))


def load_reports(sources: Sources) -> list[RunReport]:
    """The reports of runs, from the ``results.json`` of each run folder or all in a JSON-lines file.

    Raises:
        ValueError: a source holds no report, or one cannot be read; the message names it.
    """
    reports = []
    for source in as_list(sources):
        files = list_files(source, REPORT)
        if not files:
            raise ValueError(f"{os.fspath(source)} holds no {REPORT} of a run. Name the folder of a run.")
        for file in files:
            reports.append(build_named(file.read(), RunReport.from_dict, file.where, "the results of a run"))
    return reports


def as_list(sources: Sources) -> list[str | os.PathLike[str]]:
    """One source or several as a list."""
    return [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)


def _in_folder(folder: Path) -> list[ResultFile]:
    if not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder}. Name the folder that a suite was run in, or a {JSON_LINES} file of its results."
        )
    matching = (path for place in _PLACES for path in folder.glob(place) if not path.name.startswith("."))
    paths = list(islice(matching, MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise ValueError(f"{folder} holds more than {MAX_FILES:,} files of results. Read it in parts.")
    _check_bytes(folder, sum(path.stat().st_size for path in paths if path.is_file()))
    return _sorted(ResultFile(path.relative_to(folder).as_posix(), os.fspath(path)) for path in paths)


def _in_lines(path: Path) -> list[ResultFile]:
    _check_bytes(path, path.stat().st_size)
    found = []
    with open(path, "rb") as file:
        for number in range(1, MAX_FILES + 2):
            if not (line := file.readline(MAX_FILE_BYTES + 1)):
                return _sorted(found)
            where = f"{path}, line {number:,}"
            found.append(_of_line(parse_json(line, where), where))
    raise ValueError(f"{path} holds more than {MAX_FILES:,} lines. Read it in parts.")


def _of_line(data: object, where: str) -> ResultFile:
    check_keys(data, ("path", "data"), where)
    path = data["path"]
    if not isinstance(path, str) or len(path) > MAX_PATH or ResultFile(path, where).kind is None:
        raise ValueError(f"{where} has the path {reprlib.repr(path)}, which no file of results has.")
    if not isinstance(data["data"], Mapping):
        raise ValueError(f"the data in {where} is {reprlib.repr(data['data'])}; it is a mapping, as in {path}.")
    return ResultFile(path, where, data["data"])


def _check_bytes(source: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(
            f"{source} has more than {MAX_BYTES:,} bytes of results, which no suite has. Read it in parts."
        )


def _sorted(files: Iterable[ResultFile]) -> list[ResultFile]:
    return sorted(files, key=lambda file: file.path.split("/"))
