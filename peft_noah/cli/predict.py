"""The command that labels new images, or texts, by a saved adapter."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from peft_noah.cli.options import RUN_OPTIONS, Commands, with_options
from peft_noah.run.quiet import quiet

if TYPE_CHECKING:
    from peft_noah.progress import Reporter
    from peft_noah.run.prediction import Prediction

commands = Commands()

_NAMED = 10  # unreadable images that are named; all are counted


@commands.add("peft-noah predict runs/mine/adapter photos/ --output predictions.csv")
@with_options({"mixed_precision": RUN_OPTIONS["mixed_precision"]})
def predict(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub id of a NOAH adapter.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, and folders that are searched for them. For an adapter of texts: .txt files with a text in each "
            "line, and CSV, JSON and parquet files."
        ),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write. Default: lines on a terminal, CSV into a pipe.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the likeliest classes to name.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the adapter's backbone. Default: where the adapter says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images or texts per forward pass.")] = 64,
    text_column: Annotated[str | None, typer.Option(help="Column of texts. Default: text, else the only one.")] = None,
    **options: Any,
) -> None:
    """Label new images, or texts, by a saved adapter, each with its probability.

    The CSV has the columns file, label and probability; with --top 2 also label_2 and probability_2, and so on. The file of a
    text is followed by its place there, as in reviews.csv:3. An image or text that cannot be read has an empty label. The
    exit code is 0 if all were labelled, 1 if some could not be read, 2 if nothing could be done.
    """
    if output is not None:
        _check_output(output)
    quiet()
    from peft_noah.progress import Reporter
    from peft_noah.run.saved_adapter import adapter_task
    from peft_noah.run.tasks import TASKS, TEXTS

    what, reporter, left_out = TASKS[adapter_task(adapter)], Reporter(), Counter()
    options |= {"model": model, "top": top, "batch_size": batch_size}
    if what == TASKS[TEXTS]:
        total, predictions = _predict_texts(adapter, files, text_column, options)
    else:
        total, predictions = _predict_images(adapter, files, text_column, left_out, options)
    broken: list[str] = []
    with _writer(output, top) as write, _progress(reporter, output, what) as update:
        count = 0
        for count, prediction in enumerate(predictions, 1):
            write(prediction)
            if prediction.error is not None:
                broken.append(f"{prediction.file}: {prediction.error}" if len(broken) < _NAMED else "")
            update(count, total, f"{len(broken):,} cannot be read" if broken else "")
    _say_what_happened(reporter, count, broken, left_out, what)
    if broken:
        raise typer.Exit(1)


def _predict_images(
    adapter: str, files: list[Path], text_column: str | None, left_out: Counter[str], options: dict[str, Any]
) -> tuple[int, Iterator[Prediction]]:
    """How many images there are, and their predictions."""
    if text_column is not None:
        raise ValueError(f"{adapter!r} was trained on images, which are in no column {text_column!r}. Leave it out.")
    total = _count(files, left_out)
    from peft_noah.data.image_paths import find_images
    from peft_noah.run.prediction import predict

    return total, predict(adapter, find_images(files), **options)


def _predict_texts(
    adapter: str, files: list[Path], text_column: str | None, options: dict[str, Any]
) -> tuple[int, Iterator[Prediction]]:
    """How many texts there are, and their predictions; each is called by its file and its place there, from 1."""
    from peft_noah.data.load_texts import read_texts
    from peft_noah.run.prediction import predict_texts

    texts = [
        (f"{file}:{number}", text) for file in files for number, text in enumerate(read_texts(file, text_column), 1)
    ]
    if not texts:
        raise ValueError(f"there are no texts in {', '.join(map(str, files))}. Give files that hold some.")
    return len(texts), predict_texts(adapter, texts, **options)


def _count(images: list[Path], left_out: Counter[str]) -> int:
    from peft_noah.data.image_paths import find_images

    total = sum(1 for _ in find_images(images, left_out))
    if not total:
        others = f" It holds {_listed(left_out)}." if left_out else ""
        raise ValueError(
            f"there are no images in {', '.join(map(str, images))}.{others} Give image files, or folders that hold some."
        )
    return total


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


def _say_what_happened(reporter: Reporter, count: int, broken: list[str], left_out: Counter[str], what: str) -> None:
    for line in filter(None, broken):
        reporter.say(f"cannot be read: {line}")
    if len(broken) > _NAMED:
        reporter.say(f"... and {len(broken) - _NAMED:,} more; their labels are empty")
    if left_out:
        reporter.say(f"left out: {_listed(left_out)}")
    if broken:
        reporter.say(f"labelled {count - len(broken):,} of {count:,} {what}; {len(broken):,} cannot be read")


# ------------------------------------------------------------------ where predictions go


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_file():
        raise ValueError(
            f"--output {output} is no file that can be written. Give another name, or leave it out and use '>'."
        )
    if not output.parent.is_dir():
        raise ValueError(f"the folder of --output {output} does not exist. Make it first.")
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"the folder of --output {output} cannot be written. Choose another.")


@contextmanager
def _progress(reporter: Reporter, output: Path | None, what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, but where lines of predictions show the progress on the same terminal."""
    if output is None and sys.stdout.isatty():
        yield lambda done, total, note: None
        return
    with reporter.stage("predict", what) as update:
        yield update


@contextmanager
def _writer(output: Path | None, top: int) -> Iterator[Callable[[Prediction], None]]:
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
