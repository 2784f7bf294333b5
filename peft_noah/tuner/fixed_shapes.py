"""Subnets by masks instead of slices: `NoahModel.fixed_shapes` says what for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import PromptModule, by_row


@contextmanager
def chosen_by_masks(modules: list[PromptModule], config: NoahConfig) -> Iterator[None]:
    """Let an adapter's ``modules`` compute with all that they store for a while, and read from one tensor what is active.

    Raises:
        ValueError: where modules cannot keep one shape, as tokens of which blocks store different numbers.
    """
    num_blocks = len(next(iter(config.architecture.values())))
    for cls, group in by_row(modules):
        cls.fix_shapes(group, num_blocks, config)
    counts = [len(module.choice()) for module in modules]
    numbers = torch.zeros(sum(counts), dtype=torch.int64, device=next(modules[0].parameters()).device)
    try:
        for module, count, end in zip(modules, counts, itertools.accumulate(counts), strict=True):
            module.chosen = (numbers, end - count)
        yield
    finally:
        for module in modules:
            module.chosen = None


def write_choices(modules: list[PromptModule]) -> None:
    """Bring what `chosen_by_masks` has them read up to date with their dims and streams, in one copy to the device."""
    numbers, _ = modules[0].chosen
    numbers.copy_(torch.tensor([number for module in modules for number in module.choice()]))
