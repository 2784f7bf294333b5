"""Which subnet a training step trains."""

from __future__ import annotations

import random

from torch import nn
from transformers import TrainerCallback

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace


class ArchitectureSampler:
    """The subnet of a training step: a function of seed and step alone, so that resuming needs no state.

    Args:
        space: what to sample from, uniformly as in the paper: a depth per module, then a dim per block.
        seed: of the stream.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space, self.seed = space, seed

    def __call__(self, step: int) -> Architecture:
        """The architecture of optimiser step ``step``."""
        return self.space.sample(random.Random(f"noah:{self.seed}:{step}"))


class SampleArchitectureCallback(TrainerCallback):
    """For ``transformers.Trainer``: activates a random subnet at every optimiser step, the largest while evaluating.

    Args:
        seed: of the stream of architectures.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @staticmethod
    def _core(model: nn.Module) -> nn.Module:
        return model.module if hasattr(model, "module") else model

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Sample before the forward pass; all micro-batches of a step share the subnet."""
        core = self._core(model)
        core.set_architecture(ArchitectureSampler(core.get_search_space(), self.seed)(state.global_step))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Leave the largest subnet behind, so that evaluation and saving meet one that is always the same."""
        core = self._core(model)
        core.set_architecture(core.get_search_space().largest())
