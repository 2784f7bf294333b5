"""A run's stages and methods as pieces of work for other machines: plain data out, the files that a piece leaves back.

A piece is done in a folder of its own on a node. Here, where the run folder is, its files are written once, and what is drawn
from all of a run's files is made: table, figures, cards, ``best/``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import PurePosixPath
from typing import Any

from peft_noah.jsonfile import check_keys, make_plain_folder, parse_json, write_atomically
from peft_noah.plugins import import_plugins
from peft_noah.results.report import RESULTS_JSON, RESULTS_MARKDOWN, RunReport
from peft_noah.run.carried_files import check_places, read_files, scratch_folder, write_files
from peft_noah.run.cluster import Pool
from peft_noah.run.context import RunContext
from peft_noah.run.folder import RunFolder
from peft_noah.run.inputs import INPUTS
from peft_noah.run.names import BEST, CHECKPOINTS, FIGURES, LOCKS, LOG, LOGS, RESULTS, SETTINGS, STAGES
from peft_noah.run.registry import Method, Stage
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import do_method, do_stages

#: what is made from the other files of a run folder, or concerns one machine alone
_LEFT_THERE = (LOCKS, CHECKPOINTS, RESULTS_JSON, RESULTS_MARKDOWN, LOG, FIGURES, BEST)


@dataclass(frozen=True)
class Piece:
    """A stage or a method of a run.

    Args:
        files: the run folder.
        settings: of the run.
        work: gives the stage or method, when all that it needs has ended; what it raises is the piece's error.
        needs: keys of pieces that must end before.
    """

    files: RunFolder
    settings: RunSettings
    work: Callable[[], Stage | Method]
    needs: tuple[Hashable, ...] = ()


def run_pieces(
    pool: Pool,
    pieces: Mapping[Hashable, Piece],
    on_start: Callable[[Hashable], object],
    on_end: Callable[[Hashable, Exception | None], object],
) -> None:
    """Do all pieces, each as soon as those that it needs have ended; what a piece leaves is written at once.

    Args:
        pool: where.
        pieces: by their keys.
        on_start: called with the key of a piece that a node has begun.
        on_end: called with the key of a piece that has ended, and its error; None: its files are in the run folder.
    """
    order = TopologicalSorter({key: piece.needs for key, piece in pieces.items()})
    order.prepare()
    given: dict[Hashable, Stage | Method] = {}

    def end(key: Hashable, error: Exception | None) -> None:
        on_end(key, error)
        order.done(key)

    while order.is_active():
        while ready := order.get_ready():
            for key in ready:
                try:
                    packed = pack(pieces[key])
                except Exception as error:
                    end(key, error)
                else:
                    given[key] = packed["work"]
                    pool.submit(key, do_piece, packed)
        if not pool:
            continue
        event = pool.next()
        if event.node is not None:
            on_start(event.key)
            continue
        error = event.error
        if error is None:
            try:
                unpack(pieces[event.key].files, given[event.key], event.value)
            except ValueError as wrong:  # in what came back: no reason to end the others
                error = wrong
        end(event.key, error)


# ---------------------------------------------------------------------- here


def pack(piece: Piece) -> dict[str, Any]:
    """All that a node needs to do a piece; it must find data and backbone where the settings say.

    Raises:
        ValueError: as ``piece.work``.
    """
    work = piece.work()
    names = [SETTINGS, INPUTS, STAGES, *(name for stage in _stages(work) for name in (stage.file, *stage.more))]
    paths = [piece.files / name for name in names]
    if isinstance(work, Method):
        paths += [piece.files.result_path(name) for name in work.best_of]
    found = [path for place in paths for path in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {"settings": asdict(piece.settings), "work": work, "files": read_files(piece.files.path, found)}


def _stages(work: Stage | Method) -> tuple[Stage, ...]:
    """The stages that a piece does, unless they are done."""
    return work.chain if isinstance(work, Stage) else work.stages


def _places(work: Stage | Method) -> list[str]:
    """Where the files lie that a piece leaves in its run folder; patterns, as of `check_places`."""
    left = [name for stage in _stages(work) for name in (stage.file, *stage.more)]
    if isinstance(work, Method):
        left += [RunFolder("").result_path(work.name).as_posix(), *([work.keeps] if work.keeps else [])]
    return [SETTINGS, INPUTS, STAGES, f"{LOGS}/*.jsonl", *left, *(f"{name}/" for name in left)]


def unpack(files: RunFolder, work: Stage | Method, done: Mapping[str, bytes]) -> None:
    """Write what a piece has left into its run folder, so that a file that is there is complete, results last.

    Args:
        files: the run folder.
        work: what the piece was.
        done: what `do_piece` gave.

    Raises:
        ValueError: a file is none that this work leaves, or a result cannot be read.
    """
    check_places(done, _places(work))
    results = [RunReport.from_dict(parse_json(done[name], name)) for name in done if name.startswith(f"{RESULTS}/")]
    if any([result.method for result in report.results] != [work.name] for report in results):
        raise ValueError(f"a node has left another result than one of {work.name}; nothing of it is written.")
    stages = parse_json(done.get(STAGES, b"{}"), STAGES)
    if not isinstance(stages, Mapping):
        raise ValueError(f"{STAGES} of a node holds no stages; nothing of it is written.")
    for spent in stages.values():
        check_keys(spent, ("seconds", "peak_memory"), f"a stage in {STAGES}")
    make_plain_folder(files.path)
    for name in (SETTINGS, INPUTS):  # other pieces of this run bring the same
        if name in done and not (files / name).exists():
            write_atomically(files / name, done[name])
    for stage, spent in stages.items():
        files.note_stage(stage, **spent)
    places: dict[str, dict[str, bytes]] = {}
    for name, content in done.items():
        first, _, rest = name.partition("/")
        places.setdefault(first, {})[rest] = content
    for name in (SETTINGS, INPUTS, STAGES, RESULTS):
        places.pop(name, None)
    # a stage's own file comes after all that belongs to it: it says that the stage is done
    for name, contents in sorted(places.items(), key=lambda place: "" in place[1]):
        _write_place(files, name, contents)
    for report in results:
        files.add(report)


def _write_place(files: RunFolder, name: str, contents: Mapping[str, bytes]) -> None:
    """A file of a run folder, a folder of files, or an adapter, whose folder is there whole or not at all."""
    if "" in contents:
        write_atomically(files / name, contents[""])
    elif "adapter_config.json" in contents:
        files.write_adapter(name, lambda folder: write_files(folder, contents))
    else:
        write_files(make_plain_folder(files / name), contents)


# ---------------------------------------------------------------------- there


#: settings and data of the last piece of this process: the next one is mostly of the same run
_kept: list[Any] = []


def do_piece(packed: Mapping[str, Any]) -> dict[str, bytes]:
    """Do a piece away from its run folder.

    Args:
        packed: what `pack` made.

    Returns:
        What the piece has left: contents of files by their place in the run folder.

    Raises:
        ValueError: data or backbone are not those that the run began with, or not to be found here.
    """
    settings, work, given = packed["settings"], packed["work"], packed["files"]
    import_plugins(settings["plugins"])
    with scratch_folder() as folder:
        write_files(folder, given)
        run = RunContext(folder, RunSettings.from_dict(settings))
        if _kept and _kept[0] == settings:
            run.take_splits(_kept[1])
        _kept.clear()  # lets go of the images before others are decoded
        if isinstance(work, Stage):
            do_stages(run, work)
        else:
            do_method(run, work)
        _kept[:] = settings, run.splits
        left = read_files(folder, sorted(folder.rglob("*")))
    return {
        name: content
        for name, content in left.items()
        if PurePosixPath(name).parts[0] not in _LEFT_THERE and given.get(name) != content
    }
