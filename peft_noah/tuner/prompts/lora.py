"""LoRA: a low-rank update of a frozen projection."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from peft_noah.tuner.prompts.base import PromptModule, init_normal


class Lora(PromptModule):
    """Low-rank update of a projection, with elastic rank r.

    ``y' = y + s * (dropout(x) W_down^T) W_up`` with ``down`` (r, in) and ``up`` (r, out); ``s`` is
    ``config.lora_scale``. Weight decay and initialisation follow the recipe. Source: NOAH, section 3.1 (q and k each
    with a pair of their own); the released code gives q, k and v ONE shared ``down`` and no scale.
    """

    name = "lora"
    site = "projection"
    label = "LoRA (rank)"
    colour = "#0072B2"
    alone = 8  # as in the paper
    is_linear = True
    is_tokenwise = True

    @classmethod
    def shares_weights(cls, config) -> bool:
        """In the released code, one ``down`` serves all projections of a block."""
        return config.lora_shared_down

    def _configure(self, config) -> None:
        self.scale = config.lora_scale
        self.dropout = nn.Dropout(config.dropout)

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        up = {"up": (dim, self.out_features)}
        return up if self.owner is not None else {"down": (dim, self.in_features), **up}

    def reset_parameters(self, config) -> None:
        if config.init == "normal" or not config.init_weights:
            for weight in self.parameters():
                init_normal(weight, config.init_weights)
            return
        if self.owner is None:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def _down(self) -> torch.Tensor:
        if self.owner is None:
            return self.aligned("down")
        return self.owner.down[: self.dim] if self.chosen is None else self.owner.aligned("down")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(self.cast(self.dropout(x), self.up), self._down())  # (B, T, r)
        if hidden.dtype == y.dtype:  # one pass over y instead of three
            rows = y.reshape(-1, y.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
            return torch.addmm(*rows, self.aligned("up"), alpha=self.scale).view(y.shape)
        update = hidden @ self.aligned("up")  # (B, T, out)
        if self.scale != 1.0:
            update = update * self.scale
        return y + update.to(y.dtype)

    def versions(self) -> tuple[float, ...]:
        """As in every prompt module; a shared ``down`` and the scale count too."""
        shared = () if self.owner is None else self.owner.versions()
        return self.scale, *super().versions(), *shared

    def as_peft_lora(self, dim: int) -> dict[str, torch.Tensor]:
        """Copies of the weights at rank ``dim``: ``lora_A`` (r, in) and ``lora_B`` (out, r)."""
        down, up = (self.owner or self).down.detach()[:dim].clone(), self.up.detach()[:dim].T.contiguous()
        return {"lora_A.weight": down, "lora_B.weight": up}

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``down`` (r, in) and ``s * up`` (r, out)."""
        up = self.aligned("up")
        return self._down(), up if self.scale == 1.0 else self.scale * up

    def delta_weight(self) -> torch.Tensor:
        """``s * W_up^T W_down``, shape (out, in)."""
        return self.scale * (self.aligned("up").T @ self._down())
