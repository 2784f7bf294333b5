"""What the cells of a plan would cost, before any is run: parameters and fine-tunes, without a pretrained weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from peft_noah.experiments.plan import Job
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
        job: the cell, with the first seed.
        parameters: prompt parameters; of a searched architecture, the most that the budget allows.
        exact: whether it is that number, not a bound.
        cost: fine-tunes, see :mod:`peft_noah.experiments.plan`.
    """

    job: Job
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
    for job in suite.jobs:
        if job.seed != plan.seeds[0]:
            continue
        listings = suite.listings[job.task.folder]
        classes = len(listings.label_names)
        first = job.method in FROM_SUPERNET and job.folder not in shared
        shared |= {job.folder} if first else set()
        key = (job.method, classes)
        if key not in known:
            known[key] = _parameters(plan.settings(job), job, classes, plan.architectures)
        cost = plan.cost(job, listings.sizes, shared=first)
        rows.append(CellCost(job, *known[key], cost))
    return rows


def _parameters(settings: RunSettings, job: Job, classes: int, architectures) -> tuple[int, bool]:
    """Prompt parameters of a cell, and whether the number is exact."""
    config = AutoConfig.from_pretrained(settings.backbone)
    budget = settings.budget or scaled_budget(config.hidden_size, config.num_hidden_layers)
    if job.method == SINGLE:
        return max(_parameters(settings, Job(job.task, m, 0), classes, {})[0] for m in SINGLE_MODULES), False
    if job.method not in BASELINES and job.source not in architectures:
        return budget, False
    config.num_labels = classes
    with torch.device("meta"):  # shapes alone: nothing is allocated
        model = AutoModelForImageClassification.from_config(config)
        model = attach(model, architectures.get(job.method.removeprefix(TRANSFER), job.method), settings.recipe)
    return count_trainable(model)[0], True
