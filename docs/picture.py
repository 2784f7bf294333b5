"""Draws the picture of the front page from committed results.

    python docs/picture.py

Left: how much of each prompt module NOAH gave each block, the mean of the searches in results/tasks_vit_tiny_64. Right: test
accuracy against cost, from the table in results/effort.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from peft_noah.experiments.cells import load_cells
from peft_noah.formatting import module_order
from peft_noah.results.plotting import figure_file, grid_behind
from peft_noah.tuner.labels import module_colour, module_label

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
#: method in the table: name, colour, marker
METHODS = {
    "lora": ("LoRA", "#0072B2", "^"),
    "noah continued": ("NOAH continued", "#E69F00", "h"),
    "noah retrained": ("NOAH retrained", "#D55E00", "p"),
    "noah inherited": ("NOAH inherited", "#CC79A7", "P"),
}


def mean_architecture() -> tuple[dict[str, list[float]], int]:
    """The mean dim per module and block over the architectures found, and how many there are."""
    found = {}
    for cell in load_cells(RESULTS / "tasks_vit_tiny_64" / "cells.jsonl"):
        if cell.method == "noah retrained" and cell.architecture is not None:
            found[cell.task, cell.seed] = cell.architecture
    rows = defaultdict(list)
    for architecture in found.values():
        for name, dims in architecture.items():
            rows[name].append(dims)
    means = {name: [sum(column) / len(dims) for column in zip(*dims, strict=True)] for name, dims in rows.items()}
    return means, len(found)


def accuracy_by_cost() -> dict[str, list[tuple[float, float, float]]]:
    """Per method, its points: cost in fine-tunings, mean test accuracy and its standard error in percent."""
    points = defaultdict(list)
    for line in (RESULTS / "effort" / "effort.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 3 and cells[0] in METHODS:
            mean, error = cells[-1].split(" ± ")
            points[cells[0]].append((float(cells[2]), float(mean), float(error)))
    return points


def draw_architecture(axes, rows: dict[str, list[float]], count: int) -> None:
    """One row per module, one column per block; the darker a cell, the larger the mean dim."""
    largest = max(max(row) for row in rows.values())
    names = module_order(rows)
    for at, name in enumerate(names):
        dims = rows[name]
        for block, dim in enumerate(dims):
            axes.fill_between(
                [block + 0.53, block + 1.47],
                at - 0.46,
                at + 0.46,
                color=module_colour(name),
                alpha=0.25 + 0.6 * dim / largest,
                linewidth=0,
            )
            axes.text(block + 1, at, f"{dim:.1f}", ha="center", va="center", fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [module_label(name) for name in names])
    axes.set_xlim(0.5, len(next(iter(rows.values()))) + 0.5)
    axes.set_xticks(range(1, len(next(iter(rows.values()))) + 1))
    axes.set_xlabel("block (1 = nearest the image)")
    axes.set_title(f"What NOAH gives each block: mean of {count} searches")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_cost(axes, points: dict[str, list[tuple[float, float, float]]]) -> None:
    """A line per method; the bars are standard errors."""
    for method, (label, colour, marker) in METHODS.items():
        cost, mean, error = zip(*sorted(points[method]), strict=True)
        axes.errorbar(cost, mean, error, label=label, color=colour, marker=marker, markersize=7, capsize=3)
    axes.set_xlabel("cost (fine-tunings of LoRA)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("Accuracy against cost: mean of 3 tasks, 3 seeds")
    axes.legend(frameon=False, loc="lower right")
    grid_behind(axes)


def main(path: Path) -> None:
    """Write the picture to ``path``."""
    rows, count = mean_architecture()
    with figure_file(path, (13.0, 3.7)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        draw_architecture(left, rows, count)
        draw_cost(right, accuracy_by_cost())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "picture.png")
