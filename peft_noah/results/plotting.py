"""Figures from saved results, never from live models: architectures as the paper's Fig. 5, and what a search saw.

Drawn with matplotlib's objects alone: no window, no pyplot, nobody's settings are read or changed. A PNG (150 dots per
inch) or an SVG comes out, by the suffix of the path, and the same results give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from peft_noah.architecture import Architecture
from peft_noah.formatting import module_order, one_line
from peft_noah.jsonfile import write_atomically
from peft_noah.searching.result import ORIGINS, Candidate, SearchResult
from peft_noah.tuner.labels import module_colour, module_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
DPI = 150

# Okabe and Ito's palette, which people with any colour blindness can tell apart; a module that has a hue keeps it
# everywhere, the others get what the three of the paper leave.
_MORE_HUES = ("#CC79A7", "#E69F00", "#56B4E9")
INK, _ABSENT = "#222222", (0.95, 0.95, 0.95)
# Colour, shape and size (points squared) say the same, so that either is enough.
_ORIGINS = dict(zip(ORIGINS, (("#999999", "o", 20), ("#0072B2", "^", 24), ("#E69F00", "s", 15)), strict=True))
_MAX_PRINTED = 64  # blocks; beyond it the cells are too many to read: shades only
_MAX_INCHES = 40.0
BLOCK_AXIS = "block (1 = nearest the input)"

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "peft-noah",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


def plot_architecture(
    architecture: Architecture,
    path: str | os.PathLike[str],
    title: str | None = None,
    *,
    parameters: int | None = None,
) -> None:
    """Draw which block carries how much of which prompt module (the paper's Fig. 5, for one architecture).

    One row per module, one column per block, the dim printed in each cell; an empty cell carries nothing. The darker a
    cell, the larger its dim, on one scale for all rows.

    Args:
        architecture: what to draw.
        path: where to write; ``.png`` or ``.svg``.
        title: a line above the figure.
        parameters: trainable prompt parameters, to be named in the title.

    Raises:
        ValueError: the path ends otherwise.
        OSError: the file cannot be written.
    """
    heading = [one_line(title)] if title else []
    if parameters is not None:
        heading.append(f"{parameters:,} prompt parameters")
    _plot_rows({"  ·  ".join(heading): {name: list(row) for name, row in architecture.items()}}, path)


def plot_mean_architecture(groups: Mapping[str, Sequence[Architecture]], path: str | os.PathLike[str]) -> None:
    """Draw the mean dim per block and prompt module for each group of architectures (the paper's Fig. 5).

    One panel per group; a block that does not carry a module counts as 0. An empty cell: none of the group carries it.

    Args:
        groups: per name of a group, such as ``"Natural"``, its architectures, all of the same modules and blocks.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: there are no groups, one is empty, the architectures do not match, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    if not groups or not all(groups.values()):
        empty = [one_line(name) for name, group in groups.items() if not group]
        raise ValueError(
            f"no architectures to draw{f' in {empty[0]!r}' if empty else ''}: give each group one or more."
        )
    everything = [architecture for group in groups.values() for architecture in group]
    names, num_blocks = list(everything[0]), everything[0].num_blocks
    for other in everything:
        if other.keys() != set(names) or other.num_blocks != num_blocks:
            raise ValueError(
                f"cannot average architectures of {num_blocks} blocks with {', '.join(names)} and of "
                f"{other.num_blocks} blocks with {', '.join(other)}. Draw them apart."
            )
    panels = {}
    for group, members in groups.items():
        some = "1 architecture" if len(members) == 1 else f"mean of {len(members)} architectures"
        panels[f"{one_line(group)}  ·  {some}"] = {
            name: [sum(dims) / len(members) for dims in zip(*(member[name] for member in members), strict=True)]
            for name in names
        }
    _plot_rows(panels, path, decimals=1)


def plot_search(result: SearchResult, path: str | os.PathLike[str]) -> None:
    """Draw what a search saw: score against generation, with the best so far, and score against parameters.

    Within a generation the candidates stand in the order they were scored. Candidates without a score are left out.
    Scores that all lie in 0 to 1 are read as validation accuracy and shown in percent, others as they are (no unit).

    Args:
        result: a search, such as ``SearchResult.load("search.json")``.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: no candidate has a score, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    best = result.best
    scored = [candidate for candidate in result.candidates if candidate.score is not None]
    accuracy = all(0 <= candidate.score <= 1 for candidate in scored)
    scores = [candidate.score * (100 if accuracy else 1) for candidate in scored]
    height = scores[scored.index(best)]
    shown = f"{height:.1f} %" if accuracy else f"{height:.4g}"
    with figure_file(path, (11, 4.6)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        places, thousands = _places(result.candidates), [candidate.parameters / 1000 for candidate in scored]
        for axes, across in ((left, places), (right, thousands)):
            _scatter(axes, scored, across, scores)
            star = {"marker": "*", "markersize": 17, "color": "#D55E00", "markeredgecolor": "white", "zorder": 5}
            label = f"best: {shown}, {best.parameters:,} parameters"
            axes.plot(across[scored.index(best)], height, linestyle="none", label=label, **star)
        left.step(places, list(accumulate(scores, max)), where="post", color=INK, label="best so far")
        generations = 1 + result.candidates[-1].generation
        left.set_xticks(range(0, generations, -(-generations // 16)))
        left.set(xlabel="generation", ylabel="validation accuracy (%)" if accuracy else "score (no unit)")
        right.set(xlabel="prompt parameters (thousand)")
        _budget_line(right, result.budget, max(thousands))
        legend_below(figure, left, right)


def _budget_line(axes: Axes, budget: int, most: float) -> None:
    # A budget far beyond all candidates would press them together at the axis: then it is named only.
    far = budget / 1000 > 1.5 * most
    limits = axes.get_xlim()
    label = f"budget: {budget:,} parameters" + (", beyond the axis" if far else "")
    axes.axvline(budget / 1000, color=INK, linestyle="--", label=label)
    if far:
        axes.set_xlim(limits)


def _places(candidates: Sequence[Candidate]) -> list[float]:
    """Where each scored candidate stands on the axis of generations: those of one generation side by side."""
    sizes = [0] * (1 + max(candidate.generation for candidate in candidates))
    for candidate in candidates:
        sizes[candidate.generation] += 1
    seen, places = [0] * len(sizes), []
    for candidate in candidates:
        generation = candidate.generation
        if candidate.score is not None:
            places.append(generation + 0.7 * ((seen[generation] + 0.5) / sizes[generation] - 0.5))
        seen[generation] += 1
    return places


def _scatter(axes: Axes, scored: Sequence[Candidate], places: Sequence[float], scores: Sequence[float]) -> None:
    for origin, (color, marker, size) in _ORIGINS.items():
        chosen = [index for index, candidate in enumerate(scored) if candidate.origin == origin]
        if not chosen:
            continue
        axes.scatter(
            [places[index] for index in chosen],
            [scores[index] for index in chosen],
            s=size,
            c=color,
            marker=marker,
            edgecolors="white",
            linewidths=0.4,
            label=origin,
        )
    grid_behind(axes)


def grid_behind(axes: Axes) -> None:
    """Light lines behind what is drawn."""
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, *panels: Axes, columns: int = 3) -> None:
    """One legend below the figure for all panels, each label once."""
    handles = {}
    for axes in panels:
        handles.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _plot_rows(
    panels: Mapping[str, Mapping[str, Sequence[float]]], path: str | os.PathLike[str], decimals: int = 0
) -> None:
    """One panel of shaded cells per heading, one row of cells per prompt module."""
    rows = [row for panel in panels.values() for row in panel.values()]
    largest = max(max(row) for row in rows)
    num_blocks, num_rows = len(rows[0]), len(next(iter(panels.values())))
    cell = max(0.45, 0.16 + 0.09 * len(f"{largest:.{decimals}f}")) if num_blocks <= _MAX_PRINTED else 0.16
    width = min(_MAX_INCHES, max(5.0, 1.6 + num_blocks * cell))
    headings = [textwrap.fill(heading, int(11 * (width - 1.5))) for heading in panels]
    lines = sum(1 + heading.count("\n") for heading in headings if heading)
    height = min(_MAX_INCHES, 0.7 + 0.23 * lines + len(panels) * (0.42 * num_rows + 0.2))
    with figure_file(path, (width, height)) as figure:
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, heading, panel in zip(grid, headings, panels.values(), strict=True):
            axes.set_title(heading)
            _draw_cells(axes, panel, largest or 1, decimals)
        blocks = range(0, num_blocks, 1 if num_blocks <= _MAX_PRINTED else -(-num_blocks // 20))
        grid[-1].set_xticks(blocks, [str(block + 1) for block in blocks])
        grid[-1].set_xlabel(BLOCK_AXIS)


def _draw_cells(axes: Axes, panel: Mapping[str, Sequence[float]], largest: float, decimals: int) -> None:
    names, num_blocks = module_order(panel), len(next(iter(panel.values())))
    hues = _hues(names)
    shades = [[_shade(hues[name], value / largest) if value else _ABSENT for value in panel[name]] for name in names]
    axes.imshow(shades, aspect="auto", interpolation="none")
    # White lines between the cells: minor ticks stand on their borders.
    axes.set_xticks([block - 0.5 for block in range(num_blocks + 1)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(len(names) + 1)], minor=True)
    axes.set_yticks(range(len(names)), [module_label(name) for name in names])
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if num_blocks > _MAX_PRINTED:
        return
    axes.grid(which="minor", color="white", linewidth=2)
    for row, name in enumerate(names):
        for block, value in enumerate(panel[name]):
            if value:
                axes.text(block, row, f"{value:.{decimals}f}", ha="center", va="center")


def _hues(names: Sequence[str]) -> dict[str, str]:
    hues = {name: module_colour(name) for name in names}
    free = itertools.cycle(_MORE_HUES)
    return {name: hue or next(free) for name, hue in hues.items()}


def _shade(hue: str, share: float) -> tuple[float, ...]:
    """``hue`` mixed with white, light enough for dark print (contrast above 4.5).

    The root keeps small dims visible beside large ones: they span 5 to 100.
    """
    strength = 0.1 + 0.6 * share**0.5
    return tuple(1 - strength * (1 - int(hue[at : at + 2], 16) / 255) for at in (1, 3, 5))


def _import_matplotlib() -> ModuleType:
    """matplotlib, which will not be imported where MPLBACKEND names a backend that is not installed, as a notebook's is
    in another environment."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


@contextmanager
def figure_file(path: str | os.PathLike[str], inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the house style, written to ``path`` in one piece when the block ends without an error.

    Raises:
        ValueError: the path does not end in ``.png`` or ``.svg``.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"cannot draw {path.name!r}: a figure's name ends in {' or '.join(FORMATS)}.")
    matplotlib = _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)  # needs no display
        yield figure
        # What would differ from one drawing to the next, or from machine to machine, stays out.
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix[1:], metadata=metadata)
    write_atomically(path, drawn.getvalue())
