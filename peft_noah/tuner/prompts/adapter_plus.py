"""Adapter+: a bottleneck behind attention and another behind the MLP, each channel with a learned factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.tuner.prompts.base import PromptModule, init_normal


class AdapterPlus(PromptModule):
    """Bottleneck on the output y of a branch, with elastic width a and a learned factor for each of its D channels.

    ``y' = y + s * (dropout(phi(y W_down^T + b_down)) W_up + b_up)`` with ``down`` (a, D), ``down_bias`` (a,), ``up`` (a, D),
    ``up_bias`` (D,) and ``scale`` s (D,); ``phi`` is GELU. A block has two: one before attention's output is added to the
    residual, one before the MLP's. Both have the row's dim a, together 4 D a + 2 a + 4 D parameters. Their start is the
    paper's, whatever the recipe: ``down`` and ``up`` from a normal of std 0.01, cut off at two std, biases 0, s 1.

    Source: Steitz and Roth, Adapters Strike Back, CVPR 2024: bottleneck, start and factors are those of its Adapter+. That
    has one per block, of what leaves the block; two, at the ends of both branches, are the position that it calls
    Houlsby's.
    """

    name = "adapter_plus"
    site = "branch"
    label = "Adapter+ (width)"
    colour = "#882255"
    alone = 8  # the paper's, there in one place per block
    is_tokenwise = True

    def _configure(self, config) -> None:
        self.dropout = nn.Dropout(config.dropout)

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        width = self.out_features
        weights = {"down": (dim, width), "down_bias": (dim,), "up": (dim, width)}
        return {**weights, "up_bias": (width,), "scale": (width,)}

    def reset_parameters(self, config) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)
        for weight in (self.down, self.up):
            if config.init_weights:
                nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)
            else:
                init_normal(weight, config.init_weights)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(self.cast(y, self.down), self.aligned("down"), self.aligned("down_bias"))  # (B, T, a)
        hidden = self.dropout(F.gelu(hidden))
        update = F.linear(hidden, self.aligned("up").T, self.active("up_bias"))
        return y + (update * self.active("scale")).to(y.dtype)
