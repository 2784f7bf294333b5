"""BitFit: the biases of a block's Linears and norms, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from peft_noah.plugins import own_dims
from peft_noah.tuner.prompts.base import PromptModule, init_normal


class BitFit(PromptModule):
    """A learned change of the bias of all Linears and norms of a block.

    ``y' = y + beta`` with ``beta`` (1, out): out parameters for each leaf. Its dim is 1 where it is there, else 0. It
    merges: the bias b becomes ``b + beta``. Training beta from 0 is training b from where it stands, with the frozen b kept
    for other adapters; weight decay pulls to the pretrained bias instead of to 0.

    Source: BitFit (arXiv 2106.10199). There the biases outside the blocks are trained too, and a leaf without a bias gets
    none; here it gets one, and then does not merge.
    """

    name = "bitfit"
    site = "affine"
    label = "BitFit (on)"
    colour = "#332288"
    dims = own_dims("bitfit")
    alone = 1
    is_switch = True
    is_affine = True
    is_tokenwise = True

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        return {"beta": (dim, self.out_features)}

    def reset_parameters(self, config) -> None:
        nn.init.zeros_(self.beta)
        if not config.init_weights:
            init_normal(self.beta, config.init_weights)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.active("beta").to(y.dtype)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight as it is, and ``b + beta``."""
        return weight, bias + self.active("beta")[0].to(bias.device)
