"""What people see of a run: figures, and model cards in the adapter folders; all drawn from the files of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peft_noah.jsonfile import make_plain_folder, read_json, write_atomically
from peft_noah.results.card import model_card
from peft_noah.results.card_data import CardData
from peft_noah.results.plotting import plot_architecture, plot_search
from peft_noah.results.race_figure import plot_race
from peft_noah.results.report import RESULTS_JSON, MethodResult, RunReport
from peft_noah.run.architecture_source import read_architecture
from peft_noah.run.best import keep_best
from peft_noah.run.names import BEST, FIGURES, RACE, SEARCH
from peft_noah.run.registry import Method, all_methods, method_of_row
from peft_noah.searching.race import Race
from peft_noah.searching.result import SearchResult
from peft_noah.sources import shown_path

logger = logging.getLogger(__name__)

CARD, PICTURE = "README.md", "architecture.png"


def _parameters(folder: Path, method: str) -> int | None:
    path = folder / RESULTS_JSON
    results = RunReport.load(path).results if path.exists() else []
    return next((result.parameters for result in results if result.method == method), None)


def draw_figures(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the figures of a run folder: the architecture found, the search, the race.

    Raises:
        ValueError: if the folder has nothing to draw.
    """
    folder = Path(folder).expanduser()
    planned = _figures(folder)
    if not planned:
        raise ValueError(
            f"{os.fspath(folder)!r} has nothing to draw: no {SEARCH}, no {RACE}, no adapter. Run 'search' first."
        )
    for draw in planned.values():
        draw()
    return list(planned)


def publish(folder: str | os.PathLike[str], *, missing_only: bool = False) -> None:
    """Draw the figures of a run folder, write a card into each adapter folder, and copy the best one; what fails is a
    warning.

    The results are in their files before, and no figure is worth losing them.

    Args:
        folder: of the run.
        missing_only: leave alone what is there.
    """
    folder = Path(folder).expanduser()
    try:
        planned = {**_figures(folder), **_cards(folder)}
    except Exception as error:
        _warn(folder, error)
        return
    if missing_only:
        planned = {path: write for path, write in planned.items() if not _is_whole(path)}
    planned[folder / BEST] = partial(keep_best, folder)  # last: with its card
    for path, write in planned.items():
        try:
            write()
        except Exception as error:
            _warn(path, error)


def _is_whole(path: Path) -> bool:
    """Whether a figure is there, or a card with its picture."""
    return path.exists() and (path.name != CARD or (path.parent / PICTURE).exists())


def _warn(path: Path, error: Exception) -> None:
    logger.warning(
        "%s was not written (%s: %s). All results are there; once that is mended, the same command writes it.",
        *(path, type(error).__name__, error),
    )


def _figures(folder: Path) -> dict[Path, Callable[[], None]]:
    """What draws each figure that a run can have now."""
    planned: dict[Path, Callable[[], None]] = {}
    if (folder / SEARCH).exists():
        planned[folder / FIGURES / "search.png"] = partial(_draw_search, folder)
    if (folder / RACE).exists() and Race.load(folder / RACE).standings:
        planned[folder / FIGURES / "race.png"] = partial(_draw_race, folder)
    searched = [m for m in all_methods() if m.needs is not None and m.needs.file == SEARCH and m.keeps is not None]
    kept = [method for method in searched if (folder / method.keeps).exists()]
    if kept:  # all have the same architecture
        planned[folder / FIGURES / PICTURE] = partial(_draw_architecture, folder, kept[0])
    return planned


def _draw_search(folder: Path) -> None:
    plot_search(SearchResult.load(folder / SEARCH), make_plain_folder(folder / FIGURES) / "search.png")


def _draw_race(folder: Path) -> None:
    plot_race(Race.load(folder / RACE), make_plain_folder(folder / FIGURES) / "race.png")


def _draw_architecture(folder: Path, method: Method) -> None:
    path = make_plain_folder(folder / FIGURES) / PICTURE
    architecture = read_architecture(folder / method.keeps)
    plot_architecture(architecture, path, parameters=_parameters(folder, method.name))


def _cards(folder: Path) -> dict[Path, Callable[[], None]]:
    """What writes the card of each adapter folder whose result is there."""
    if not (folder / RESULTS_JSON).exists():
        return {}
    report = RunReport.load(folder / RESULTS_JSON)
    planned = {}
    for result in report.results:
        method = method_of_row(result.method)
        if method is not None and method.keeps is not None and (folder / method.keeps).exists():
            planned[folder / method.keeps / CARD] = partial(_write_card, folder, report, result, method)
    return planned


def _write_card(folder: Path, report: RunReport, result: MethodResult, method: Method) -> None:
    """README.md and the picture of the architecture; the card is written even where the picture cannot be drawn."""
    place = make_plain_folder(folder / method.keeps)
    config = read_json(place / "adapter_config.json")
    failed = None
    try:
        plot_architecture(read_architecture(place), place / PICTURE)
    except Exception as error:
        failed = error
    try:
        text = model_card(_card_data(folder, report, result, method, config, None if failed else PICTURE))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / RESULTS_JSON} and the adapter's config do not say what a model card needs ({error!r}). "
            "Run the method again."
        ) from error
    write_atomically(place / CARD, text)
    if failed is not None:
        raise failed


def _card_data(
    folder: Path, report: RunReport, result: MethodResult, method: Method, config: dict, figure: str | None
) -> CardData:
    as_cut_out = method.training is None
    sizes, settings = report.task["sizes"], report.settings
    accuracy = {"test": None if result.test is None else (result.test, result.n_test)}
    if result.validation is not None:
        accuracy = {"validation": (result.validation, result.n_validation), **accuracy}
    training = {
        "weights": method.weights,
        f"training {report.what}s": sizes["train"] + (0 if as_cut_out else sizes["validation"]),
        "epochs": settings["supernet_epochs"] if as_cut_out else settings["epochs"],
        "seed": result.seed,
    }
    if method.epochs is not None:  # as long as its stage has left; a note of the report says it
        del training["epochs"]
    stage = method.needs
    search = {} if stage is None or stage.facts is None else stage.facts(folder / stage.file, settings)
    return CardData(
        base_model=shown_path(config["base_model_name_or_path"]),
        architecture=config["architecture"],
        parameters=result.parameters,
        head_parameters=result.head_parameters,
        labels=report.task["label_names"],
        preprocessing=report.preprocessing,
        what=report.what,
        recipe=settings["recipe"],
        task=shown_path(report.task["source"]),
        accuracy=accuracy,
        training=training,
        search=search,
        versions=report.versions,
        figure=figure,
        interpolate_pos_encoding=report.backbone["interpolated"],
        plugins=config.get("plugins") or {},
    )
