"""All tables and figures that the cells of a suite allow, written into one folder."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from peft_noah.experiments.analysis import BestShare, shared_by_best
from peft_noah.experiments.cells import Cell, count_failed, load_cells, load_searches
from peft_noah.experiments.differences import differences_over_seeds, differences_over_tasks
from peft_noah.experiments.figures import (
    plot_architectures,
    plot_best,
    plot_few_shot,
    plot_groups,
    plot_transfer,
)
from peft_noah.experiments.grid import Grid, domain_cells, few_shot_cells, standard_cells
from peft_noah.experiments.result_files import Sources
from peft_noah.experiments.tables import (
    domain_table,
    few_shot_table,
    main_table,
    retraining_table,
    transfer_table,
    transfers,
)
from peft_noah.formatting import escape, facts
from peft_noah.jsonfile import write_atomically
from peft_noah.results.table import Table
from peft_noah.run.methods import NOAH
from peft_noah.searching.result import SearchResult

TABLES_MARKDOWN = "tables.md"

# What says which cell it is, and where its files lie.
_OF_THE_TASK = {"task", "group", "dataset", "shots", "seed", "num_classes", "other_tests", "model", "baselines"}

Drawing = tuple[str, str, Callable[[Path], None]]


def write_tables(
    sources: Sources, output: str | os.PathLike[str], *, paper: bool = False, top: int = 10
) -> list[Path]:
    """Write every table (``.md``, ``.tex``, ``.csv``) and figure (``.png``) that the cells of a suite allow.

    ``tables.md`` holds all of them. The same cells give the same bytes. Everything is read and computed before the first
    file is written. Files of the same names are replaced; others stay.

    Args:
        sources: the folder of a suite or of a run, a JSON-lines file of results, or a sequence of them.
        output: where to write; made where it is missing.
        paper: add the paper's own Table 1, as columns marked so.
        top: how many candidates of each search are its best; searches with fewer than twice as many are left out.

    Returns:
        The files written, ``tables.md`` first.

    Raises:
        ValueError: a source, cell or search cannot be read, or they do not go together; nothing is written then.
        OSError: ``output`` cannot be written.
    """
    cells, failed = load_cells(sources), count_failed(sources)
    _check_backbone(cells)
    searches = load_searches(sources)
    shares = _shared(searches, top)
    tables = [table for table in _tables(cells, shares, paper) if table is not None]
    drawings = list(_drawings(cells, shares))
    text = _markdown(cells, failed, len(searches), tables, drawings)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, _, draw in drawings:
        paths.append(output / f"{name}.png")
        draw(paths[-1])
    for table in tables:
        for suffix, content in ((".md", table.to_markdown()), (".tex", table.to_latex()), (".csv", table.to_csv())):
            paths.append(output / f"{table.name}{suffix}")
            write_atomically(paths[-1], content)
    write_atomically(output / TABLES_MARKDOWN, text)
    return [output / TABLES_MARKDOWN, *paths]


def _tables(cells: Sequence[Cell], shares: Mapping[str, BestShare], paper: bool) -> Iterator[Table | None]:
    yield main_table(cells, paper)
    yield domain_table(cells)
    yield retraining_table(cells)
    yield few_shot_table(cells)
    yield transfer_table(cells)
    for prefix, chosen, what in _protocols(cells):
        yield differences_over_tasks(chosen, f"{prefix}differences", what)
        yield differences_over_seeds(chosen, None, f"{prefix}differences_by_task", what)
    for suffix, share in shares.items():
        yield share.depth_table(f"best_depths{suffix}")
        yield share.dim_table(f"best_dims{suffix}")


def _protocols(cells: Sequence[Cell]) -> list[tuple[str, list[Cell], str]]:
    """Cells that belong together, with a prefix for file names and their tasks in words."""
    return [
        ("", standard_cells(cells), "tasks"),
        ("few_shot_", few_shot_cells(cells), "few-shot tasks"),
        ("domain_", domain_cells(cells), "tasks with further test sets"),
    ]


def _drawings(cells: Sequence[Cell], shares: Mapping[str, BestShare]) -> Iterator[Drawing]:
    """File name without suffix, what it shows, and what draws it, for each figure that the cells allow."""
    if standard := standard_cells(cells):
        means = [mean for _, row in Grid.from_cells(standard).mean_rows() for mean in row.values()]
        if any(mean is not None for mean in means):
            yield "fig3_groups", "Mean test accuracy of each method", partial(plot_groups, cells)
    if any(cell.result.test is not None for cell in few_shot_cells(cells)):
        yield "fig4_few_shot", "Test accuracy against shots", partial(plot_few_shot, cells)
    for prefix, chosen, what in _protocols(cells):
        for suffix, alike in _by(chosen, _shape).items():
            yield (
                f"fig5_{prefix}architectures{suffix}",
                f"Mean architecture that NOAH found, {what}",
                partial(plot_architectures, alike),
            )
    if transfers(cells)[2]:
        yield "fig6_transfer", "Architectures found on one task, retrained on another", partial(plot_transfer, cells)
    for suffix, share in shares.items():
        yield f"best{suffix}", "What the best candidates of the searches share", partial(plot_best, share)


def _shape(cell: Cell) -> object:
    """What architectures need to have in common for a mean; None where the cell has none to draw."""
    if cell.architecture is None or cell.method not in NOAH:
        return None
    return frozenset(cell.architecture), cell.architecture.num_blocks


def _by(values: Sequence[Any], key: Callable[[Any], object]) -> dict[str, list[Any]]:
    """Values of equal keys by a suffix for file names, the first without one; those of key None left out."""
    sets: dict[object, list[Any]] = defaultdict(list)
    for value in values:
        if (shared := key(value)) is not None:
            sets[shared].append(value)
    return {f"_{place}" if place > 1 else "": members for place, members in enumerate(sets.values(), start=1)}


def _shared(searches: Sequence[SearchResult], top: int) -> dict[str, BestShare]:
    """What the best share, by space; a search must have scored ``top`` others besides."""
    enough = [search for search in searches if len(search.ranking()) >= 2 * top]
    return {suffix: shared_by_best(alike, top) for suffix, alike in _by(enough, lambda s: s.space).items()}


def _check_backbone(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        seen.setdefault(json.dumps({**cell.backbone, "model": _model_name(cell)}, sort_keys=True), cell)
    if len(seen) > 1:
        first, second = list(seen.values())[:2]
        raise ValueError(
            f"task {first.task!r} ran on the backbone {dict(first.backbone)} and task {second.task!r} on "
            f"{dict(second.backbone)}: no table compares them. Give the results of one backbone."
        )


def _settings(cells: Sequence[Cell]) -> tuple[dict[str, object], list[str]]:
    """What all cells share, and the names of what differs between cells of one method in one protocol."""
    asked = [{name: value for name, value in cell.settings.items() if name not in _OF_THE_TASK} for cell in cells]
    everywhere = [name for name in asked[0] if all(other.get(name) == asked[0][name] for other in asked)]
    differing = set()
    for _, chosen, _ in _protocols(cells):
        first: dict[str, Mapping[str, object]] = {}
        for cell in chosen:
            other = first.setdefault(cell.method, cell.settings)
            names = (cell.settings.keys() | other.keys()) - _OF_THE_TASK
            differing |= {name for name in names if cell.settings.get(name) != other.get(name)}
    return {name: asked[0][name] for name in everywhere if asked[0][name] is not None}, sorted(differing)


def _model_name(cell: Cell) -> str:
    """The last part of a backbone's name: its folder may lie elsewhere on another machine."""
    return str(cell.backbone.get("model", "not named")).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _markdown(
    cells: Sequence[Cell], failed: int, searches: int, tables: Sequence[Table], drawings: Sequence[Drawing]
) -> str:
    """All tables and figures on one page, below what was run."""
    seeds = sorted({cell.seed for cell in cells})
    run = {
        "finished cells": len(cells),
        "failed cells": failed,
        "searches": searches,
        "tasks": len({(cell.task, cell.shots) for cell in cells}),
        "seeds": seeds,
        "backbone": _model_name(cells[0]),
        **{f"backbone {name}": value for name, value in cells[0].backbone.items() if name != "model"},
    }
    parts = ["# Results of a suite\n", facts(run) + "\n"]
    same, differing = _settings(cells)
    if same:
        parts.append(f"Settings that all cells share:\n\n{facts(same)}\n")
    if differing:
        parts.append(f"**Cells of one method differ in {escape(', '.join(differing))}: compare with care.**\n")
    # A note that several tables need stands once.
    counts = Counter(note for table in tables for note in table.notes)
    shared = [note for note, count in counts.items() if count > 1]
    if shared:
        parts.append("## How to read the tables\n\n" + "\n".join(f"- {escape(note)}" for note in shared) + "\n")
    for table in tables:
        own = tuple(note for note in table.notes if note not in shared)
        parts.append(replace(table, notes=own).to_markdown())
    parts += [f"## {escape(what)}\n\n![{escape(what)}]({name}.png)\n" for name, what, _ in drawings]
    return "\n".join(parts)
