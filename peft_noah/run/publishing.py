"""What people see of a run: figures, and model cards in the adapter folders; all drawn from the files of the run."""

from __future__ import annotations

import os
from pathlib import Path

from peft_noah.jsonfile import make_plain_folder, read_json, write_atomically
from peft_noah.results.card import CardData, model_card
from peft_noah.results.plotting import plot_architecture, plot_search
from peft_noah.results.report import RESULTS_JSON, MethodResult, RunReport
from peft_noah.run.architecture_source import read_architecture
from peft_noah.run.folder import FIGURES, SEARCH, adapter_folder
from peft_noah.run.method_names import CONTINUED, INHERITED, NOAH, TRANSFER
from peft_noah.searching.result import SearchResult

_WEIGHTS = {
    INHERITED: "inherited from the supernet",
    CONTINUED: "inherited from the supernet and trained on",
}


def _parameters(folder: Path, method: str) -> int | None:
    path = folder / RESULTS_JSON
    results = RunReport.load(path).results if path.exists() else []
    return next((result.parameters for result in results if result.method == method), None)


def draw_figures(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the figures of a run folder: the architecture found, and the search.

    Raises:
        ValueError: if the folder has neither a search nor an adapter.
    """
    folder = Path(folder).expanduser()
    drawn = []
    if (folder / SEARCH).exists():
        make_plain_folder(folder / FIGURES)
        plot_search(SearchResult.load(folder / SEARCH), folder / FIGURES / "search.png")
        drawn.append(folder / FIGURES / "search.png")
    kept = [method for method in NOAH if (folder / adapter_folder(method)).exists()]
    for method in kept[:1]:  # all have the same architecture
        make_plain_folder(folder / FIGURES)
        plot_architecture(
            read_architecture(folder / adapter_folder(method)),
            folder / FIGURES / "architecture.png",
            parameters=_parameters(folder, method),
        )
        drawn.append(folder / FIGURES / "architecture.png")
    if not drawn:
        raise ValueError(
            f"{os.fspath(folder)!r} has nothing to draw: neither {SEARCH} nor an adapter. Run 'search' first."
        )
    return drawn


def write_cards(folder: str | os.PathLike[str]) -> None:
    """Write README.md and the picture of the architecture into each adapter folder of a run."""
    folder = Path(folder).expanduser()
    report = RunReport.load(folder / RESULTS_JSON)
    for result in report.results:
        name = adapter_folder(result.method)
        if name is not None and (folder / name).exists():
            make_plain_folder(folder / name)
            config = read_json(folder / name / "adapter_config.json")
            plot_architecture(read_architecture(folder / name), folder / name / "architecture.png")
            try:
                text = model_card(_card_data(folder, report, result, config))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder / RESULTS_JSON} and the adapter's config do not say what a model card needs ({error!r}). "
                    "Run the method again."
                ) from error
            write_atomically(folder / name / "README.md", text)


def _card_data(folder: Path, report: RunReport, result: MethodResult, config: dict) -> CardData:
    as_cut_out = result.method == INHERITED
    sizes, settings = report.task["sizes"], report.settings
    accuracy = {"test": None if result.test is None else (result.test, result.n_test)}
    if result.validation is not None:
        accuracy = {"validation": (result.validation, result.n_validation), **accuracy}
    training = {
        "weights": _WEIGHTS.get(result.method, "retrained from scratch"),
        "training images": sizes["train"] + (0 if as_cut_out else sizes["validation"]),
        "epochs": settings["supernet_epochs"] if as_cut_out else settings["epochs"],
        "seed": result.seed,
    }
    search = {}
    if (folder / SEARCH).exists() and not result.method.startswith(TRANSFER):
        found = SearchResult.load(folder / SEARCH)
        search = {"budget": found.budget, "candidates scored": len(found.candidates), "variant": settings["variant"]}
    return CardData(
        base_model=config["base_model_name_or_path"],
        architecture=config["architecture"],
        parameters=result.parameters,
        head_parameters=result.head_parameters,
        labels=report.task["label_names"],
        preprocessing=report.preprocessing,
        recipe=settings["recipe"],
        task=report.task["source"],
        accuracy=accuracy,
        training=training,
        search=search,
        versions=report.versions,
        figure="architecture.png",
        interpolate_pos_encoding=report.backbone["interpolated"],
    )
