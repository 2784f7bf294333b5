"""Adapter: a bottleneck behind the MLP, before the residual sum."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.tuner.prompts.base import PromptModule, init_normal


class Adapter(PromptModule):
    """Serial bottleneck on the MLP's output h, with elastic width a.

    ``h' = h + s * (dropout(phi(h W_down^T + b_down)) W_up + b_up)`` with ``down`` (a, D), ``down_bias`` (a,), ``up``
    (a, D), ``up_bias`` (D,): 2 D a + a + D parameters. ``phi`` is ``config.adapter_activation``, ``s`` is
    ``config.adapter_scale``. Source: NOAH, section 3.1 (phi "such as" ReLU, no s); the released code takes QuickGELU,
    ``x * sigmoid(1.702 x)``.
    """

    name = "adapter"
    site = "mlp_output"
    label = "Adapter (width)"
    colour = "#D55E00"
    alone = 8  # as in the paper
    is_tokenwise = True

    def _configure(self, config) -> None:
        from transformers.activations import ACT2FN  # takes seconds, and whoever wants a label needs none

        self.scale = config.adapter_scale
        self.activation = ACT2FN[config.adapter_activation]
        self.dropout = nn.Dropout(config.dropout)

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        width = self.out_features
        return {"down": (dim, width), "down_bias": (dim,), "up": (dim, width), "up_bias": (width,)}

    def reset_parameters(self, config) -> None:
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)
        if config.init == "normal" or not config.init_weights:
            init_normal(self.down, config.init_weights)
            init_normal(self.up, config.init_weights)
            return
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(self.cast(y, self.down), self.aligned("down"), self.aligned("down_bias"))  # (B, T, a)
        hidden = self.dropout(self.activation(hidden))
        update = F.linear(hidden, self.aligned("up").T, self.active("up_bias"))
        if self.scale != 1.0:
            update = update * self.scale
        return y + update.to(y.dtype)
