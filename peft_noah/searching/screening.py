"""Screening: a candidate is scored in bfloat16, and again in float32 where rounding could change the answer.

    margin = logit of the label - largest other logit
    right: margin > t        wrong: margin < -t        uncertain: all else

``t`` is the largest change of a margin by bfloat16 that was seen so far, times SAFETY. The first candidates know only
their own changes, and take them times FIRST_SAFETY. Where no change exceeds ``t``, all answers are those of float32. Few
images lie within ``t``, and an uncertain answer is confirmed in float32 only where it could decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from peft_noah.fast.hardware import has_bfloat16
from peft_noah.jsonfile import check_keys, check_number
from peft_noah.searching.bounding import Answers
from peft_noah.training.evaluation import predict

SAFETY, FIRST_SAFETY = 2.0, 4.0

#: images of each look of the first candidates that are scored in both precisions, to learn how much bfloat16 changes
FIRST_COMPARED = 32

#: logits (B, classes) of the images with these numbers
Logits = Callable[[list[int]], torch.Tensor]


class Uncertain(NamedTuple):
    """An answer that rounding could have changed.

    Attributes:
        right: what it is, if rounding has not changed it.
        margin: the larger, the less likely it has (logits).
    """

    right: bool
    margin: float = 0.0


class Screen:
    """Whether candidates are screened, and how far their bfloat16 answers are trusted.

    Args:
        model: of float32 weights; with others nothing is screened.
        device: where it runs; without bfloat16 in hardware there is nothing to gain.
        precision: Accelerate's ``mixed_precision``; only ``"no"`` leaves something to gain.
        wanted: False: off.

    Attributes:
        reason: why nothing is screened; None where it is.
        change: the largest change of a margin by bfloat16 that was seen so far; None before the first.
        confirmed: images that this process has looked at in float32.
    """

    def __init__(self, model: nn.Module, device: torch.device, precision: str, wanted: bool = True) -> None:
        self.device_type, self.change, self.confirmed = device.type, None, 0
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
        """The context in which a candidate is screened."""
        return torch.autocast(self.device_type, torch.bfloat16)

    def classify(self, margins: torch.Tensor, own_change: float | None = None) -> list[bool | Uncertain]:
        """Which images are right by their bfloat16 margins (B,).

        Args:
            margins: as :func:`label_margin` gives them.
            own_change: the largest change that this candidate has seen itself, where others have taught nothing yet.
        """
        learnt = math.inf if self.change is None else self.change
        most = SAFETY * learnt if own_change is None else FIRST_SAFETY * own_change
        return [
            margin > 0 if abs(margin) > most else Uncertain(margin > 0, max(0.0, abs(margin)))
            for margin in margins.tolist()
        ]

    def learn(self, change: float) -> None:
        """Take in how much bfloat16 changed a margin at most; a change that is not finite ends the screening."""
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
        self.learn(check_number(data["change"], "the change of a margin by bfloat16", 0))


class ConfirmedAnswers(Answers):
    """Answers of which some are uncertain, until they could decide and are confirmed.

    Those that are most likely to be confirmed as wrong come first, and no more of them than it takes.

    Args:
        guess: which of some images are right, some of these answers uncertain.
        check: the same for sure.
    """

    def __init__(
        self,
        guess: Callable[[list[int]], Sequence[bool | Uncertain]],
        check: Callable[[list[int]], Sequence[bool]],
    ) -> None:
        super().__init__(check)
        self.guess = guess
        self._maybe_right: list[tuple[float, int]] = []  # margins and images
        self._maybe_wrong: list[tuple[float, int]] = []

    @property
    def uncertain(self) -> int:
        return len(self._maybe_right) + len(self._maybe_wrong)

    @property
    def likely_wrong(self) -> int:
        return len(self.wrong) + len(self._maybe_wrong)

    def look(self, images: list[int], limit: int) -> None:
        for image, answer in zip(images, self.guess(images), strict=True):
            if isinstance(answer, Uncertain):
                (self._maybe_right if answer.right else self._maybe_wrong).append((answer.margin, image))
            elif not answer:
                self.wrong.append(image)
        while len(self.wrong) < limit <= self.likely_wrong:
            self._maybe_wrong.sort()
            needed = limit - len(self.wrong)
            self._confirm([self._maybe_wrong.pop()[1] for _ in range(needed)])

    def confirm(self) -> None:
        images = [image for _, image in self._maybe_right + self._maybe_wrong]
        self._maybe_right, self._maybe_wrong = [], []
        if images:
            self._confirm(images)

    def _confirm(self, images: list[int]) -> None:
        self.wrong += [image for image, right in zip(images, self.check(images), strict=True) if not right]


class ScreenedAnswers(ConfirmedAnswers):
    """The answers of one candidate, from its logits in bfloat16, and in float32 where these leave doubt.

    Args:
        screen: what was learnt from earlier candidates.
        shared: the candidate's logits, by the fastest way.
        plain: the same by a plain forward pass, which shares nothing with other candidates or precisions.
        labels: of all images, (images,).
        classes: the classes that an image can have; None: all.
    """

    def __init__(
        self, screen: Screen, shared: Logits, plain: Logits, labels: torch.Tensor, classes: Sequence[int] | None
    ) -> None:
        super().__init__(self._screened, self._exactly)
        self.screen, self.shared, self.plain, self.labels, self.classes = screen, shared, plain, labels, classes

    def _screened(self, images: list[int]) -> list[bool | Uncertain]:
        compared = [] if self.screen.change is not None else images[:FIRST_COMPARED]
        answers = self._compare(compared) if compared else []
        if rest := images[len(compared) :]:
            with self.screen.autocast():
                logits = self.shared(rest)
            answers += self.screen.classify(self._margins(logits, rest), self.change)
        return answers

    def _compare(self, images: list[int]) -> list[bool]:
        """The answers in float32; notes how much bfloat16 changes their margins."""
        exact = self.plain(images)
        with self.screen.autocast():
            rounded = self.plain(images)
        changes = self._margins(exact, images) - self._margins(rounded, images)
        change = changes.abs().max().item()  # NaN if any is
        self.change = max(self.change or 0.0, math.inf if math.isnan(change) else change)
        self.screen.confirmed += len(images)
        return self._right(exact, images)

    def _exactly(self, images: list[int]) -> list[bool]:
        self.screen.confirmed += len(images)
        return self._right(self.plain(images), images)

    def _margins(self, logits: torch.Tensor, images: list[int]) -> torch.Tensor:
        return label_margin(logits, self.labels[images], self.classes)

    def _right(self, logits: torch.Tensor, images: list[int]) -> list[bool]:
        return (predict(logits, self.classes).cpu() == self.labels[images]).tolist()


def label_margin(logits: torch.Tensor, labels: torch.Tensor, classes: Sequence[int] | None = None) -> torch.Tensor:
    """By how much the logit of the label is above all others, (B,) of logits (B, C), among ``classes`` where given."""
    logits, labels = logits.float(), labels.to(logits.device)
    own = logits.gather(-1, labels[:, None])
    others = logits.scatter(-1, labels[:, None], -math.inf)
    if classes is not None:
        others = others[:, list(classes)]
    return own[:, 0] - others.amax(-1)
