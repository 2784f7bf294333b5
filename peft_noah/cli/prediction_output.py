"""Where predictions go: lines on a terminal, CSV into a pipe, or a file that is whole or not there."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from peft_noah.progress import Reporter
    from peft_noah.run.prediction import Prediction


def check_output(output: Path) -> None:
    """Refuse a file that could not be written, before anything is predicted.

    Raises:
        ValueError: says why not.
    """
    if output.exists() and not output.is_file():
        raise ValueError(
            f"--output {output} is no file that can be written. Give another name, or leave it out and use '>'."
        )
    if not output.parent.is_dir():
        raise ValueError(f"the folder of --output {output} does not exist. Make it first.")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"the folder of --output {output} cannot be written. Choose another.")


@contextmanager
def progress_of(reporter: Reporter, output: Path | None, what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, but where lines of predictions show the progress on the same terminal."""
    if output is None and sys.stdout.isatty():
        yield lambda done, total, note: None
        return
    with reporter.stage("predict", what) as update:
        yield update


@contextmanager
def writer_of(output: Path | None, top: int) -> Iterator[Callable[[Prediction], None]]:
    """What writes one prediction: to a file, a terminal or a pipe."""
    from peft_noah.training.interruption import Interrupted

    try:
        if output is not None:
            with _whole_file(output) as file:
                yield _CsvRows(file, top)
        elif sys.stdout.isatty():
            yield _print_line
        else:
            with _pipe() as file:
                yield _CsvRows(file, top)
    except Interrupted as stopped:
        kept = "" if output is None else f" {_partial(output)} holds the predictions so far."
        raise Interrupted(f"stopped.{kept} The same command starts anew.", stopped.number) from stopped


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


@contextmanager
def _whole_file(output: Path) -> Iterator[TextIO]:
    """A file that gets its name when it is whole; until then, and after a failure, its name ends in .partial."""
    partial = _partial(output)
    partial.unlink(missing_ok=True)  # a link there would be written through
    with open(partial, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, output)


@contextmanager
def _pipe() -> Iterator[TextIO]:
    """Standard output in UTF-8 whatever the locale, with the bytes of file names as they are."""
    pipe = io.TextIOWrapper(sys.stdout.buffer, "utf-8", "surrogateescape", newline="")
    try:
        yield pipe
    finally:
        pipe.detach()


class _CsvRows:
    """Writes predictions as rows of a CSV, after its header."""

    def __init__(self, file: Any, top: int) -> None:
        self._rows, self._cells = csv.writer(file, lineterminator="\n"), 2 * top
        more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("label", "probability")]
        self._rows.writerow(["file", "label", "probability", *more])

    def __call__(self, prediction: Prediction) -> None:
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        cells = [cell for label, probability in pairs for cell in (label, f"{probability:.6f}")]
        self._rows.writerow([prediction.file, *(cells or [""] * self._cells)])


def _print_line(prediction: Prediction) -> None:
    from peft_noah.formatting import one_line

    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    found = ", ".join(f"{100 * probability:5.1f} % {one_line(label)}" for label, probability in pairs)
    typer.echo(f"{one_line(prediction.file)}: {found or 'cannot be read'}")
