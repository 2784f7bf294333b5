"""An average of the weights of a training's steps, which predicts more steadily than the last step's weights do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from peft_noah.jsonfile import check_number


class WeightAverage:
    """Exponential moving average of the trainable weights of a model.

    After step t, counted from 1: ``average = d average + (1 - d) weights``, where ``d = min(decay, t / (t + 9))``. So an
    average of few steps forgets the start quickly. Source: arXiv 1803.05407 and 2403.18843; the rule for early steps is
    that of `tf.train.ExponentialMovingAverage`.

    Args:
        model: its trainable weights are averaged; not copied otherwise.
        decay: most of the old average that a step keeps; no unit, at least 0 and below 1.

    Raises:
        ValueError: on a decay out of range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99) -> None:
        self.decay, self.steps = check_number(decay, "decay", 0, below=1), 0
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step into the average."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        get_ema_multi_avg_fn(decay)(self.averages, [weight.detach() for weight in self.weights], self.steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model and the average."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
