"""The command that labels new images, or texts, by a saved adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peft_noah.cli.options import RUN_OPTIONS, Commands, with_options
from peft_noah.cli.prediction_output import check_output, progress_of, writer_of
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
        check_output(output)
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
    with writer_of(output, top) as write, progress_of(reporter, output, what) as update:
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
