"""RepAdapter: a bottleneck without an activation behind attention and the MLP, which merges."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.tuner.prompts.base import PromptModule, init_normal


class RepAdapter(PromptModule):
    """Linear bottleneck on the output y of the last Linear of attention, and of that of the MLP, with elastic width a.

    ``y' = y + s * (dropout(y W_down^T + b_down) W_up + b_up)`` with ``down`` (a, D), ``down_bias`` (a,), ``up`` (a, D) and
    ``up_bias`` (D,): together 4 D a + 2 a + 2 D parameters for a block. ``s`` is ``config.adapter_scale``. It merges: with
    ``M = s W_up^T W_down`` the Linear's weight W and bias b become ``W + M W`` and ``b + M b + s (W_up^T b_down + b_up)``.

    Source: RepAdapter (arXiv 2302.08106). There it stands in front of attention and the MLP, and a W_up in two groups has half
    of the weights. Here it stands behind them, where one Linear takes it up, and W_up is dense.
    """

    name = "rep_adapter"
    site = "output"
    label = "RepAdapter (width)"
    colour = "#661100"
    alone = 8  # the paper's
    is_affine = True
    is_tokenwise = True

    def _configure(self, config) -> None:
        self.scale = config.adapter_scale
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
        update = F.linear(self.dropout(hidden), self.aligned("up").T, self.active("up_bias"))
        return y + (self.scale * update).to(y.dtype)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``W + M W`` and ``b + M b + s (W_up^T b_down + b_up)``."""
        down, down_bias, up, up_bias = (self.active(name).to(weight.device) for name in self.shapes(self.dim))
        shift = (bias.to(down.dtype) @ down.T + down_bias) @ up + up_bias
        return weight + self.scale * (up.T @ (down @ weight.to(down.dtype))), bias + self.scale * shift
