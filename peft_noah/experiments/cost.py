"""What the cells of a plan would cost, before any is run: parameters and fine-tunes, without a pretrained weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from peft_noah.experiments.cells import Cell
from peft_noah.run.method_names import FROM_SUPERNET, SINGLE, TRANSFER
from peft_noah.run.methods import BASELINES, SINGLE_MODULES, attach, count_trainable
from peft_noah.run.settings import RunSettings
from peft_noah.searching.budget import scaled_budget

if TYPE_CHECKING:
    from peft_noah.experiments.suite import Suite


@dataclass(frozen=True)
class CellCost:
    """A method on a task: what each of its seeds costs.

    Attributes:
        cell: the cell, with the first seed.
        parameters: prompt parameters; of a searched architecture, the most that the budget allows.
        exact: whether it is that number, not a bound.
        cost: fine-tunes, see :mod:`peft_noah.experiments.plan`.
    """

    cell: Cell
    parameters: int
    exact: bool
    cost: float


def cell_costs(suite: Suite) -> list[CellCost]:
    """The cost of every method on every task of a suite, in the order of the plan.

    Raises:
        ValueError: if a task is not what the plan says, or the backbone's family is unknown.
    """
    plan, rows, known = suite.plan, [], {}
    shared: set[str] = set()
    for cell in suite.cells:
        if cell.seed != plan.seeds[0]:
            continue
        listings = suite.listings[cell.full_task]
        classes = len(listings.label_names)
        first = cell.method in FROM_SUPERNET and cell.run_folder not in shared
        if first:
            shared.add(cell.run_folder)
        key = (cell.method, classes)
        if key not in known:
            known[key] = _parameters(plan.settings(cell), cell, classes, plan.architectures)
        cost = plan.cost(cell, listings.sizes, shared=first)
        rows.append(CellCost(cell, *known[key], cost))
    return rows


def _parameters(settings: RunSettings, cell: Cell, classes: int, architectures) -> tuple[int, bool]:
    """Prompt parameters of a cell, and whether the number is exact."""
    config = AutoConfig.from_pretrained(settings.backbone)
    budget = settings.budget or scaled_budget(config.hidden_size, config.num_hidden_layers)
    if cell.method == SINGLE:
        return max(_parameters(settings, replace(cell, method=m), classes, {})[0] for m in SINGLE_MODULES), False
    if cell.method not in BASELINES and cell.source not in architectures:
        return budget, False
    config.num_labels = classes
    with torch.device("meta"):  # shapes alone: nothing is allocated
        model = AutoModelForImageClassification.from_config(config)
        model = attach(model, architectures.get(cell.method.removeprefix(TRANSFER), cell.method), settings.recipe)
    return count_trainable(model)[0], True
