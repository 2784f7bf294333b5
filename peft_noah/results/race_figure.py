"""The picture of a race: how well each design did against what it had cost, who stopped when, and who won."""

from __future__ import annotations

import os

from peft_noah.formatting import one_line
from peft_noah.results.plotting import INK, figure_file, grid_behind, legend_below
from peft_noah.searching.race import Heat, Race

#: Okabe and Ito's palette, which people with any colour blindness can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_MARKERS = "os^Dvp<"


def plot_race(race: Race, path: str | os.PathLike[str]) -> None:
    """Draw the out-of-fold accuracy of each design against how long it has been trained.

    One line a design, one point a rung. A cross ends a design that stopped, a star marks the winner.

    Args:
        race: with one finished rung or more, whose heats noted their accuracy.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: no rung has been finished, an accuracy is missing, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    if not race.standings:
        raise ValueError("this race has not finished a rung: there is nothing to draw.")
    curves = {index: _curve(race, index) for index in range(len(race.designs))}
    with figure_file(path, (9, 4.6 + 0.25 * len(race.designs))) as figure:
        axes = figure.subplots()
        for place, (index, (shares, accuracies)) in enumerate(curves.items()):
            if not shares:
                continue
            style = {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
            axes.plot(shares, accuracies, markersize=5, label=_label(race, index), **style)
            if race.is_over and index == race.winner:
                end = {"marker": "*", "markersize": 16, "markeredgecolor": "white", "color": style["color"]}
                axes.plot(shares[-1:], accuracies[-1:], linestyle="none", zorder=5, **end)
            elif index not in race.running:
                axes.plot(shares[-1:], accuracies[-1:], "x", color=INK, markersize=9, zorder=5)
        axes.set(xlabel="trained for (% of a full training)", ylabel=f"accuracy on {race.what}s not trained on (%)")
        axes.set_xlim(left=0)
        grid_behind(axes)
        legend_below(figure, axes, columns=1)


def _curve(race: Race, design: int) -> tuple[list[float], list[float]]:
    """How long a design had been trained at the end of each of its rungs, and its accuracy there, both in percent."""
    shares, accuracies = [], []
    for rung, standings in enumerate(race.standings):
        if design not in [standing.design for standing in standings]:
            break
        heats = [Heat(design, fold, rung) for fold in range(race.settings.folds)]
        if any("accuracy" not in race.notes[heat] for heat in heats):
            raise ValueError(
                f"rung {rung + 1} of this race did not note the accuracy of {race.designs[design].name!r}."
            )
        sizes = [len(race.told[heat]) for heat in heats]
        right = sum(race.notes[heat]["accuracy"] * size for heat, size in zip(heats, sizes, strict=True))
        shares.append(100 * race.settings.trained(rung))
        accuracies.append(100 * right / sum(sizes))
    return shares, accuracies


def _label(race: Race, design: int) -> str:
    """A design's name, and what became of it."""
    name = one_line(race.designs[design].name)
    for rung, standings in enumerate(race.standings):
        for standing in standings:
            if standing.design == design and standing.stopped:
                return f"{name}: rung {rung + 1}, {one_line(standing.stopped)}"
    return f"{name}: won" if race.is_over and design == race.winner else name
