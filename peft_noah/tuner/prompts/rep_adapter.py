"""RepAdapter: a bottleneck without an activation behind attention and the MLP, which merges."""

from __future__ import annotations

import torch
from torch import nn

from peft_noah.tuner.prompts.adapter import Adapter


class RepAdapter(Adapter):
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

    def _configure(self, config) -> None:
        self.scale = config.adapter_scale
        self.activation = nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``W + M W`` and ``b + M b + s (W_up^T b_down + b_up)``."""
        down, down_bias, up, up_bias = (self.active(name).to(weight.device) for name in self.shapes(self.dim))
        shift = (bias.to(down.dtype) @ down.T + down_bias) @ up + up_bias
        return weight + self.scale * (up.T @ (down @ weight.to(down.dtype))), bias + self.scale * shift
