"""Subnets by masks instead of slices: `NoahModel.fixed_shapes` says what for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.prompts import PromptModule, Vpt
from peft_noah.tuner.prompts.vpt import plan_streams


@contextmanager
def chosen_by_masks(modules: list[PromptModule], config: NoahConfig, adapter_name: str) -> Iterator[None]:
    """Let an adapter's ``modules`` compute with all that they store for a while, and read from one tensor what is active.

    Raises:
        ValueError: where blocks store different numbers of VPT tokens.
    """
    vpts = [module for module in modules if isinstance(module, Vpt)]
    blocks = len(next(iter(config.architecture.values())))
    stored = [vpt.max_dim for vpt in vpts] + [0] * (blocks - len(vpts))
    if len({*stored}) > 1:
        raise ValueError(
            f"shapes cannot be fixed: adapter {adapter_name!r} stores {stored} VPT tokens, and all blocks must store "
            "equally many. Choose a search space in which every block may carry VPT, or train without compiling."
        )
    streams = plan_streams([stored[0], *[0] * (blocks - 1)], config.vpt_past_depth)
    for vpt in vpts:
        vpt.largest_stream = streams[vpt.block]
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
