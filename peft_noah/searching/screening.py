"""Screening: a subnet is looked at in bfloat16, and again in float32 where rounding could change the answer.

    gap = logit of the label - largest other logit
    right: gap > t        wrong: gap < -t        look again: all else

``t`` is what bfloat16 is taken to change of a gap at most: SAFETY times the largest change that was seen so far, FIRST_SAFETY
times for the first candidates, of which each knows its own changes alone. Where this holds, the answers are those of float32.
Few images lie within ``t``, and a race looks again only at those that could decide it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peft_noah.fast.hardware import has_bfloat16
from peft_noah.jsonfile import check_keys, check_number
from peft_noah.searching.racing import Unsure

SAFETY, FIRST_SAFETY = 2.0, 4.0


class Screen:
    """Whether a model is screened, and how far its bfloat16 answers are trusted.

    Args:
        model: of float32 weights; what else there is turns screening off.
        device: where it runs; without bfloat16 in hardware there is nothing to gain.
        precision: Accelerate's ``mixed_precision``; only ``"no"`` leaves something to gain.
        wanted: False: off.

    Attributes:
        reason: why nothing is screened; None where it is.
        change: the largest change of a gap by bfloat16 that was seen so far; None before the first.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str, wanted: bool = True) -> None:
        self.device_type, self.change = device.type, None
        self.reason: str | None = None
        if not wanted:
            self.reason = "it was not asked for"
        elif precision != "no":
            self.reason = f"the precision is {precision!r} throughout"
        elif any(weight.is_floating_point() and weight.dtype != torch.float32 for weight in model.parameters()):
            self.reason = "not all weights are float32"
        elif not has_bfloat16(device):
            self.reason = f"the {device.type} has no arithmetic in bfloat16"

    def autocast(self) -> torch.autocast:
        """The context in which the model is screened."""
        return torch.autocast(self.device_type, torch.bfloat16)

    def answers(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        classes: Sequence[int] | None = None,
        first: float | None = None,
    ) -> list[bool | Unsure]:
        """Which images are right by their bfloat16 logits (B, C) and labels (B,); ``first`` is the largest change that a
        candidate has seen itself, where nothing was learnt from others yet."""
        gaps = label_gap(logits, labels, classes).tolist()
        learnt = math.inf if self.change is None else self.change
        most = SAFETY * learnt if first is None else FIRST_SAFETY * first
        return [gap > 0 if abs(gap) > most else Unsure(gap > 0, max(0.0, abs(gap))) for gap in gaps]

    def learn(self, change: float) -> None:
        """Take in how much bfloat16 changed a gap at most; a change without bounds ends the screening."""
        if not math.isfinite(change):
            self.reason = "bfloat16 does not hold the model's numbers"
        self.change = change if self.change is None else max(self.change, change)

    def to_dict(self) -> dict[str, float]:
        """What was learnt, as plain data."""
        return {} if self.change is None or not math.isfinite(self.change) else {"change": self.change}

    def resume(self, data: Mapping[str, object]) -> None:
        """Go on from what :meth:`to_dict` describes.

        Raises:
            ValueError: it cannot be.
        """
        check_keys(data, ["change"], "what a search in bfloat16 noted")
        self.learn(check_number(data["change"], "the change of a gap by bfloat16", 0))


def label_gap(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[int] | None = None) -> torch.Tensor:
    """By how much the logit of the label is above all others, (B,) of logits (B, C), among ``classes`` where given."""
    logits, labels = logits.float(), labels.to(logits.device)
    own = logits.gather(-1, labels[:, None])
    others = logits.scatter(-1, labels[:, None], -math.inf)
    if classes is not None:
        others = others[:, list(classes)]
    return own[:, 0] - others.amax(-1)
