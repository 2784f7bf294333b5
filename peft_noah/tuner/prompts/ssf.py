"""SSF: each Linear and norm of a block scaled and shifted, channel by channel."""

from __future__ import annotations

import torch
from torch import nn

from peft_noah.plugins import own_dims
from peft_noah.tuner.prompts.base import PromptModule, init_normal


class Ssf(PromptModule):
    """A learned factor and shift for each channel of the output y of all Linears and norms of a block.

    ``y' = (1 + gamma) * y + beta`` with ``gamma`` (1, out) and ``beta`` (1, out): 2 out parameters for each leaf. Its dim is
    1 where it is there, else 0. It merges: weight and bias become ``(1 + gamma) W`` and ``(1 + gamma) b + beta``.

    Source: Scaling and Shifting Your Features (arXiv 2210.08823), whose gamma is our 1 + gamma: so what is switched off is
    zero. There the patch embedding and the model's last norm have one too. Both gamma and beta start at 0 with
    ``config.init = "identity"``; with ``"normal"`` as there, from a normal of std 0.02.
    """

    name = "ssf"
    site = "affine"
    label = "SSF (on)"
    colour = "#999933"
    dims = own_dims("ssf")
    alone = 1
    is_switch = True
    is_affine = True
    is_tokenwise = True

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        return {"gamma": (dim, self.out_features), "beta": (dim, self.out_features)}

    def reset_parameters(self, config) -> None:
        for weight in (self.gamma, self.beta):
            if config.init == "normal" or not config.init_weights:
                init_normal(weight, config.init_weights)
            else:
                nn.init.zeros_(weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + (y * self.active("gamma") + self.active("beta")).to(y.dtype)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(1 + gamma) W`` and ``(1 + gamma) b + beta``."""
        gamma, beta = (self.active(name)[0].to(weight.device) for name in ("gamma", "beta"))
        factor = (1 + gamma).view(-1, *[1] * (weight.dim() - 1))
        return factor * weight, (1 + gamma) * bias + beta
