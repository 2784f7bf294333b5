"""The paper's figures from the cells of a suite, and from the architectures its authors published.

Each writes one ``.png`` or ``.svg``, in the style of :mod:`peft_noah.results.plotting`; the same cells give the same bytes.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from peft_noah.architecture import Architecture
from peft_noah.experiments.analysis import BestShare
from peft_noah.experiments.cells import Cell
from peft_noah.experiments.grid import Grid, few_shot_cells, order_groups, standard_cells
from peft_noah.experiments.paper import VTAB_GROUPS, published_groups, vtab_name
from peft_noah.experiments.tables import count_shots, few_shot_grids, transfers
from peft_noah.formatting import module_order, one_line
from peft_noah.results.plotting import (
    BLOCK_AXIS,
    INK,
    figure_file,
    grid_behind,
    legend_below,
    plot_mean_architecture,
)
from peft_noah.results.statistics import Estimate
from peft_noah.run.methods import NOAH
from peft_noah.run.registry import all_methods
from peft_noah.tuner.labels import module_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette. Colour and shape say the same, so that either is enough; a method keeps both everywhere.
_COLORS = ("#999999", "#222222", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
_MARKERS = ("X", "v", "s", "D", "^", "P", "p", "h", "o", "<", ">", "d", "*")
_MAX_INCHES = 40.0
ALL_TASKS = "All tasks"


def plot_groups(cells: Iterable[Cell], path: str | os.PathLike[str]) -> None:
    """Draw the mean test accuracy of each method over each group of tasks, and both means over all (Fig. 3).

    The bars are standard errors. Each panel has its own scale. A method that lacks a task of a group has no point there.

    Args:
        cells: of a suite; few-shot, domain generalisation and transfer are left out.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: no method has a mean to draw, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    grid = Grid.from_cells(standard_cells(cells))
    points = dict(grid.mean_rows())
    if all(estimate is None for column in points.values() for estimate in column.values()):
        raise ValueError("no method has been run on all tasks of a group: there is no mean to draw yet.")
    columns = min(5, len(points))
    lines = -(-len(points) // columns)
    with figure_file(path, (max(5.0, 2.3 * columns), min(_MAX_INCHES, 0.8 + 3 * lines))) as figure:
        every = list(figure.subplots(lines, columns, squeeze=False).flat)
        for place, (axes, (name, means)) in enumerate(zip(every, points.items(), strict=False)):
            for at, method in enumerate(grid.methods):
                if (estimate := means[method]) is not None:
                    _draw_points(axes, method, [(at, estimate)])
            axes.set_title("\n".join(textwrap.wrap(one_line(name), 20)))
            axes.set_xlim(-0.7, len(grid.methods) - 0.3)
            axes.set_xticks([])
            grid_behind(axes)
            if place % columns == 0:
                axes.set_ylabel("test accuracy (%)")
        for axes in every[len(points) :]:
            axes.set_visible(False)
        legend_below(figure, *every, columns=min(5, len(grid.methods)))


def plot_few_shot(cells: Iterable[Cell], path: str | os.PathLike[str]) -> None:
    """Draw test accuracy against shots, one panel per task and one for their mean, one line per method (Fig. 4).

    The bars are standard errors. A point of the mean is drawn only where every task has that method and those shots.

    Args:
        cells: of a suite; all but few-shot cells are left out.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: there is no few-shot cell, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    grids = few_shot_grids(few_shot_cells(cells))
    if not grids:
        raise ValueError("there are no few-shot cells to draw: run a suite of few-shot tasks first.")
    some = next(iter(grids.values()))
    panels = [*some.groups, None]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with figure_file(path, (0.6 + 3.6 * columns, min(_MAX_INCHES, 1 + 2.9 * lines))) as figure:
        every = list(figure.subplots(lines, columns, squeeze=False).flat)
        for place, (axes, task) in enumerate(zip(every, panels, strict=False)):
            for index, method in enumerate(some.methods):
                curve = [(s, g.plain_mean(method) if task is None else g.at(task, method)) for s, g in grids.items()]
                # Side by side by a few percent, so that one bar does not hide another.
                dodge = 2 ** (0.05 * (index - (len(some.methods) - 1) / 2))
                _draw_points(axes, method, [(s * dodge, estimate) for s, estimate in curve if estimate is not None])
            heading = f"mean of {len(some.groups)} tasks" if task is None else task
            axes.set_title("\n".join(textwrap.wrap(one_line(heading), 34)))
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(grids), [str(shots) for shots in grids])
            axes.set_xlim(min(grids) / 1.25, max(grids) * 1.25)
            axes.minorticks_off()
            grid_behind(axes)
            if place % columns == 0:
                axes.set_ylabel("test accuracy (%)")
            if place + columns >= len(panels):
                axes.set_xlabel("training images per class")
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        legend_below(figure, *every, columns=min(5, len(some.methods)))


def plot_architectures(cells: Iterable[Cell], path: str | os.PathLike[str]) -> None:
    """Draw the mean architecture that NOAH found, per group of tasks and over all (Fig. 5).

    NOAH's cells of a task and seed share one architecture, which counts once. Few-shot tasks are
    grouped by shots.

    Args:
        cells: of a suite; what is not of NOAH is left out.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: no cell of NOAH has an architecture, they do not match, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    cells = list(cells)
    found: dict[tuple, tuple[str, Architecture]] = {}
    for cell in cells:
        if cell.method in NOAH and cell.architecture is not None:
            group = cell.group if cell.shots is None else count_shots(cell.shots)
            found.setdefault((cell.task, cell.shots, cell.seed), (group, cell.architecture))
    if not found:
        raise ValueError("no cell of NOAH has an architecture to draw: run NOAH first.")
    groups: dict[str, list[Architecture]] = defaultdict(list)
    for group, architecture in found.values():
        groups[group].append(architecture)
    shots = {count_shots(cell.shots): cell.shots for cell in cells if cell.shots is not None}
    order = sorted(order_groups(groups), key=lambda group: shots.get(group, 0))
    named = {group: groups[group] for group in order if group}
    everything = [architecture for _, architecture in found.values()]
    plot_mean_architecture(named if len(named) == 1 == len(groups) else named | {ALL_TASKS: everything}, path)


def plot_published_architectures(path: str | os.PathLike[str], protocol: str = "vtab") -> None:
    """Draw the mean of the architectures that the authors published, with no training at all (Fig. 5).

    Args:
        path: where to write; ``.png`` or ``.svg``.
        protocol: ``"vtab"``, the 19 of VTAB-1k by group and over all; or ``"few_shot"``, the 26 by number of shots and
            over all.

    Raises:
        ValueError: the protocol has another name, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    plot_mean_architecture(published_architectures(protocol), path)


def published_architectures(protocol: str) -> dict[str, list[Architecture]]:
    """The architectures that the authors published, by group or number of shots, and all of them together.

    Args:
        protocol: ``"vtab"`` or ``"few_shot"``.

    Raises:
        ValueError: the protocol has another name.
    """
    if protocol not in ("vtab", "few_shot"):
        raise ValueError(f"no architectures of the protocol {protocol!r} are published; give 'vtab' or 'few_shot'.")
    groups: dict[str, list[Architecture]] = defaultdict(list)
    for name in Architecture.published_names():
        if name.startswith(f"{protocol}/"):
            with warnings.catch_warnings():
                # Two repeat a row, see Architecture.published. They are shown as they were published.
                warnings.simplefilter("ignore", UserWarning)
                groups[_published_group(name)].append(Architecture.published(name))
    order = VTAB_GROUPS if protocol == "vtab" else sorted(groups, key=lambda name: int(name.split()[0]))
    named = {group: groups[group] for group in order}
    return named | {ALL_TASKS: [one for group in named.values() for one in group]}


def _published_group(name: str) -> str:
    if (task := vtab_name(name)) is not None:
        return published_groups()[task]
    return count_shots(int(name.rpartition("_")[2]))


def plot_transfer(cells: Iterable[Cell], path: str | os.PathLike[str]) -> None:
    """Draw what an architecture found on one task is worth on others, against their own search (Fig. 6).

    One row per source, one column per task; in a cell the difference of test accuracy in points.

    Args:
        cells: of a suite, with methods ``transfer <source>`` and NOAH retrained.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: no transfer can be compared with its task's own search, or the path ends otherwise.
        OSError: the file cannot be written.
    """
    sources, tasks, differences = transfers(cells)
    if not differences:
        raise ValueError("no transfer has its task's own search beside it: run both first.")
    points = [[100 * differences[s, t][0] if (s, t) in differences else None for t in tasks] for s in sources]
    width = min(_MAX_INCHES, 2.6 + 0.75 * len(tasks))
    height = min(_MAX_INCHES, 2.4 + 0.42 * len(sources))
    with figure_file(path, (max(5.0, width), height)) as figure:
        axes = figure.subplots()
        _draw_differences(axes, points, decimals=1)
        axes.set_xticks(range(len(tasks)), [_short(task) for task in tasks], rotation=35, ha="right")
        axes.set_yticks(range(len(sources)), [_short(source) for source in sources])
        axes.set(xlabel="retrained on", ylabel="found on")
        axes.set_title("test accuracy minus that of the\ntask's own search (points)")


def plot_best(shares: BestShare, path: str | os.PathLike[str]) -> None:
    """Draw what the best candidates of a search share: dims per block against the others, and depths.

    Left, one panel per module: by how many points each dim is more frequent in a block among the best than among the
    others. Right: the share of each depth among the best, the others, and in a uniform draw.

    Args:
        shares: see :func:`~peft_noah.experiments.analysis.shared_by_best`.
        path: where to write; ``.png`` or ``.svg``.

    Raises:
        ValueError: the path ends otherwise.
        OSError: the file cannot be written.
    """
    names, blocks = module_order(shares.space.dims), shares.space.num_blocks
    heights = [len(shares.space.all_dims(name)) for name in names]
    across = max(3.4, 0.5 * blocks)
    inches = (min(_MAX_INCHES, 5.2 + across), min(_MAX_INCHES, 1.3 + sum(0.4 * h + 0.85 for h in heights)))
    with figure_file(path, inches) as figure:
        ratios = {"width_ratios": [across, 3.6], "height_ratios": [h + 2 for h in heights]}
        grid = figure.subplots(len(names), 2, squeeze=False, gridspec_kw=ratios)
        for (left, right), name in zip(grid, names, strict=True):
            choices = shares.space.all_dims(name)
            pairs = list(zip(shares.best.dims[name], shares.others.dims[name], strict=True))
            _draw_differences(left, [[100 * (b[c] - o[c]) for b, o in pairs] for c in choices])
            left.set_yticks(range(len(choices)), ["absent", *map(str, choices[1:])])
            left.set_xticks(range(blocks), [str(block + 1) for block in range(blocks)])
            left.set_title(f"{one_line(module_label(name))}: best − others (points)")
            _draw_depths(right, shares, name)
        grid[-1, 0].set_xlabel(BLOCK_AXIS)
        grid[-1, 1].set_xlabel("depth (blocks)")
        legend_below(figure, *grid[:, 1])


def _draw_depths(axes: Axes, shares: BestShare, name: str) -> None:
    depths = shares.space.depths[name]
    kinds = {"best": (shares.best, "#0072B2"), "others": (shares.others, "#999999")}
    for index, (label, (kind, color)) in enumerate(kinds.items()):
        places = [at + 0.36 * (index - 0.5) for at in range(len(depths))]
        axes.bar(places, [100 * kind.depths[name][d] for d in depths], width=0.34, color=color, label=label)
    uniform = [100 * shares.uniform.depths[name][depth] for depth in depths]
    bounds = [at - 0.45 for at in range(len(depths))], [at + 0.45 for at in range(len(depths))]
    axes.hlines(uniform, *bounds, color=INK, linestyle="--", linewidth=1, label="uniform draw")
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_title("depths (% of candidates)")
    axes.set_ylim(0, 105)


def _draw_points(axes: Axes, method: str, points: Sequence[tuple[float, Estimate]]) -> None:
    """Estimates in percent with their standard errors, in the colour and shape of their method."""
    if not points:
        return
    color, marker = _look(method)
    axes.errorbar(
        [x for x, _ in points],
        [100 * estimate.mean for _, estimate in points],
        yerr=[100 * (estimate.error or 0) for _, estimate in points],
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        capsize=2.5,
        elinewidth=1.1,
        label=one_line(method),
    )


def _look(method: str) -> tuple[str, str]:
    """Colour and marker: fixed for known methods, by the letters of its name for any other."""
    known = [each.name for each in all_methods()]
    if method in known:
        place, markers = known.index(method), _MARKERS
    else:
        place, markers = sum(map(ord, method)), _MARKERS[len(known) :] or _MARKERS
    return _COLORS[place % len(_COLORS)], markers[place % len(markers)]


def _draw_differences(axes: Axes, points: Sequence[Sequence[float | None]], decimals: int = 0) -> None:
    """Shaded cells with their numbers: blue above 0, orange below, grey where there is none."""
    largest = max((abs(p) for row in points for p in row if p is not None), default=0) or 1
    axes.imshow([[_difference_shade(p, largest) for p in row] for row in points], aspect="auto", interpolation="none")
    axes.set_xticks([column - 0.5 for column in range(len(points[0]) + 1)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(len(points) + 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, values in enumerate(points):
        for column, value in enumerate(values):
            if value is not None:
                text = f"{value:+.{decimals}f}" if round(value, decimals) else f"{0:.{decimals}f}"
                axes.text(column, row, text.replace("-", "−"), ha="center", va="center", fontsize=9)


def _difference_shade(value: float | None, largest: float) -> tuple[float, ...]:
    if value is None:
        return (0.9, 0.9, 0.9)
    hue = "#0072B2" if value > 0 else "#E69F00"
    strength = 0.6 * abs(value) / largest
    return tuple(1 - strength * (1 - int(hue[at : at + 2], 16) / 255) for at in (1, 3, 5))


def _short(name: str) -> str:
    return textwrap.shorten(one_line(name), 28, placeholder="…") or one_line(name)[:28]
