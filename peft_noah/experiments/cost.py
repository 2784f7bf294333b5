"""What the cells of a plan would cost, before any is run: parameters and fine-tunes, without a pretrained weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from peft_noah.data.backbone_config import load_config
from peft_noah.experiments.cells import Cell
from peft_noah.run.methods import RACE
from peft_noah.run.models import add_design, count_trainable
from peft_noah.run.registry import Method, find_method, method_of_row, transfer
from peft_noah.run.settings import RunSettings
from peft_noah.searching.budget import scaled_budget
from peft_noah.tuner.backbones import find_backbone

if TYPE_CHECKING:
    from peft_noah.experiments.suite import Suite


@dataclass(frozen=True)
class CellCost:
    """A method on a task: what each of its seeds costs.

    Attributes:
        cell: the cell, with the first seed.
        parameters: prompt parameters; of a searched architecture, the most that the budget allows; of a race, those of its
            largest design.
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
    cells = [cell for cell in suite.cells if cell.seed == plan.seeds[0]]
    costs = plan.costs(cells, lambda task: suite.listings[task].sizes, {})
    for cell, cost in zip(cells, costs, strict=True):
        listings = suite.listings[cell.full_task]
        method = method_of_row(cell.method) if cell.source is not None else plan.method(cell.method)
        if method.source in plan.architectures:
            method = transfer(method.source, plan.architectures[method.source])
        key = (method.name, len(listings.label_names))
        if key not in known:
            known[key] = _parameters(plan.settings(cell), method, len(listings.label_names))
        rows.append(CellCost(cell, *known[key], cost))
    return rows


def _parameters(settings: RunSettings, method: Method, classes: int) -> tuple[int, bool]:
    """Prompt parameters of a method, and whether the number is exact."""
    if method.best_of:
        return max(_parameters(settings, find_method(name), classes)[0] for name in method.best_of), False
    shapes = _Shapes(settings, classes)
    if method.needs is RACE:
        sizes = [
            _count(lambda design=design: add_design(shapes.fresh_backbone(), design, settings.recipe))
            for design in settings.raced
        ]
        within = [size for size in sizes if settings.budget is None or size <= settings.budget]
        return max(within, default=settings.budget), False
    if method.needs is not None or (method.source is not None and method.architecture is None):
        return settings.budget or scaled_budget(shapes.widths()), False
    return _count(lambda: method.start(shapes)), True


def _count(start: Callable[[], nn.Module]) -> int:
    """Prompt parameters of a model, of which nothing is allocated."""
    with torch.device("meta"):
        return count_trainable(start())[0]


class _Shapes:
    """A backbone of shapes alone: nothing is downloaded but its config, and nothing is allocated."""

    def __init__(self, settings: RunSettings, classes: int) -> None:
        self.settings = settings
        self.config = load_config(settings.backbone)
        self.config.num_labels = classes

    def fresh_backbone(self) -> nn.Module:
        return AutoModelForImageClassification.from_config(self.config)

    def widths(self) -> tuple[int, ...]:
        with torch.device("meta"):
            return find_backbone(self.config.model_type).widths(self.fresh_backbone())
