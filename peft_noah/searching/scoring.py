"""How good subnets of a supernet are on a set of images: raced, and spread over processes.

search(space, scorer, count, budget, racing=True, map=spread)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data.images import ImageSplit
from peft_noah.data.preprocessing import Normalizer
from peft_noah.fast import fast_forward
from peft_noah.searching.prefixes import PrefixCache
from peft_noah.searching.racing import Bar, Hardness, Outcome, Unsure, race
from peft_noah.searching.result import Bounds, SearchResult
from peft_noah.searching.screening import Screen, label_gap
from peft_noah.training.evaluation import predict

logger = logging.getLogger(__name__)

#: images of each of the first candidates that are looked at in both precisions, to learn how much bfloat16 changes
FIRST_COMPARED = 32

#: share of the cache for merged weights, which candidates have in common block by block
MERGED_SHARE = 0.1


class Scorer:
    """Top-1 accuracy of subnets, a fraction, as `evaluate` measures it; or its bounds, where a race is stopped.

    Every process looks at all images of the candidates that it is given. The order of the images follows from what
    earlier candidates got wrong, so it is the same on all processes, see :func:`spread`.

    Args:
        model: a supernet with ``set_architecture``, called as ``model(pixel_values=...)`` with ``.logits``.
        images: uint8 images and labels.
        normalize: uint8 pixels to the backbone's input.
        accelerator: device, processes and precision.
        batch_size: most images per forward pass.
        cache_gb: most memory that may be taken beside the model and a batch, in gigabytes (10^9 bytes). It holds the
            normalised images, which beyond it are fetched and normalised whenever they are needed, and with what is
            left what candidates share: hidden states, see :class:`~peft_noah.searching.prefixes.PrefixCache`, and merged weights.
        screen: whether to look in bfloat16 first, and in float32 only where that could matter, see
            :class:`~peft_noah.searching.screening.Screen`; the scores are those of float32.
        on_scored: called as ``on_scored(done, best)`` while candidates are scored, with the number of those done and
            the best score so far, None where there is none; equally often on all processes.

    Attributes:
        known: results of an interrupted search by architecture; they are not scored again.
        hardness: how often each image was seen so far by all processes together, and wrong.
        done: candidates scored so far, known ones included.
        best: the best score so far; None before the first.
        prefixes: the hidden states that candidates share.
        screen: whether candidates are screened, and what was learnt from it.
        looked_again: images that this process has looked at in float32 while it screened.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImageSplit,
        normalize: Normalizer,
        accelerator: Accelerator,
        *,
        batch_size: int = 256,
        cache_gb: float = 1.0,
        screen: bool = True,
        on_scored: Callable[[int, float | None], object] | None = None,
    ) -> None:
        self.model, self.images, self.normalize, self.accelerator = model, images, normalize, accelerator
        self.batch_size, self.on_scored = batch_size, on_scored
        self.known: dict[Architecture, float | Bounds | None] = {}
        self.hardness = Hardness(len(images))
        self.done, self.best = 0, None
        self.screen, self.looked_again = Screen(model, accelerator.device, accelerator.mixed_precision, screen), 0
        channels, height, width = images.image_shape
        size = 4 * len(images) * channels * height * width
        fits = size <= cache_gb * 1e9
        self._pixels = self._fetch(list(range(len(images)))) if fits else None
        left = cache_gb - size / 1e9 if fits else 0.0
        self._merged_bytes = int(MERGED_SHARE * left * 1e9)
        self.prefixes = PrefixCache(model, len(images), (1 - MERGED_SHARE) * left)

    def keep(self, result: SearchResult) -> None:
        """Note in a result's provenance what `resume` needs to go on as if nothing had happened."""
        result.provenance["racing"] = self.hardness.to_dict()
        if noted := self.screen.to_dict():
            result.provenance["screening"] = noted

    def resume(self, result: SearchResult) -> None:
        """Score no candidate of an interrupted search again.

        Raises:
            ValueError: the result has an entry that `keep` cannot have left.
        """
        self.known = {c.architecture: c.score if c.bounds is None else c.bounds for c in result.candidates}
        if "racing" in result.provenance:
            self.hardness = Hardness.from_dict(result.provenance["racing"], len(self.images))
        if "screening" in result.provenance:
            self.screen.resume(result.provenance["screening"])

    def _fetch(self, images: list[int]) -> torch.Tensor:
        pixels = self.images.__getitems__(images)["pixel_values"].to(self.accelerator.device)
        return self.normalize(pixels)

    def __call__(self, architecture: Architecture, bar: Bar | None = None) -> float | Bounds | None:
        """The accuracy of a subnet; its bounds, where a bar is given and out of reach."""
        outcome = self.race(architecture, bar)
        self.learn([outcome])
        return outcome.result

    def race(self, architecture: Architecture, bar: Bar | None = None) -> Outcome:
        """Score one subnet in this process, without learning from it; the model's mode is restored."""
        with self.ready():
            return self.race_ready(architecture, bar)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Make the model ready to score several subnets, and restore its mode: both take a while."""
        was_training = self.model.training
        self.model.eval()
        try:
            with fast_forward(self.model) as fast, torch.inference_mode():  # as `evaluate` does
                fast.linears.limit = self._merged_bytes
                yield
        finally:
            self.model.train(was_training)

    def race_ready(self, architecture: Architecture, bar: Bar | None = None) -> Outcome:
        """The same as :meth:`race`, inside of :meth:`ready`."""
        if architecture in self.known:
            return Outcome(self.known[architecture])
        self._change: float | None = None
        outcome = Outcome(None)
        try:
            self.model.set_architecture(architecture)
            outcome = race(partial(self._right, architecture), self.hardness, bar, self._exactly)
            return outcome._replace(change=self._change)
        finally:
            self.prefixes.settle(useful=isinstance(outcome.result, float))

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Take in the outcomes of all processes."""
        self.hardness.learn(outcomes)
        screened = self.screen.reason is None
        for outcome in outcomes:
            if outcome.change is not None:
                self.screen.learn(outcome.change)
        if screened and self.screen.reason is not None:
            self.prefixes.clear()  # hidden states of bfloat16 must not serve float32
        self.done += len(outcomes)
        self.best = _best(self.best, *outcomes)

    def _right(self, architecture: Architecture, images: list[int]) -> list[bool | Unsure]:
        """Which of these images the active subnet gets right."""
        screened = self.screen.reason is None
        if not screened or self.screen.change is not None:
            return self._look(architecture, images, screened)
        sure = self._exactly(images[:FIRST_COMPARED], compare=True)
        return sure + self._look(architecture, images[FIRST_COMPARED:], screened)

    def _look(self, architecture: Architecture, images: list[int], screened: bool) -> list[bool | Unsure]:
        """The same in the precision of the search, or in bfloat16."""
        answers: list[bool | Unsure] = []
        for batch, pixels in self._batches(images):
            with self.screen.autocast() if screened else self.accelerator.autocast():
                logits = self.prefixes.logits(architecture, batch, pixels)
            labels, classes = self.images.labels[batch], self.images.classes
            if screened:
                answers += self.screen.answers(logits, labels, classes, first=self._change)
            else:
                answers += self._answers(logits, labels)
        return answers

    def _exactly(self, images: list[int], compare: bool = False) -> list[bool]:
        """The same for sure, in float32; may note how much bfloat16 changes the gaps at most."""
        answers: list[bool] = []
        for batch, pixels in self._batches(images):
            labels, classes = self.images.labels[batch], self.images.classes
            logits = self.model(pixel_values=pixels).logits
            answers += self._answers(logits, labels)
            if compare:
                with self.screen.autocast():
                    rounded = self.model(pixel_values=pixels).logits
                gaps = [label_gap(x, labels, classes) for x in (logits, rounded)]
                change = (gaps[0] - gaps[1]).abs().max().item()  # NaN if any is
                self._change = max(self._change or 0.0, math.inf if math.isnan(change) else change)
        self.looked_again += len(images)
        return answers

    def _batches(self, images: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers and normalised pixels."""
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            yield batch, self._fetch(batch) if self._pixels is None else self._pixels[batch]

    def _answers(self, logits: torch.Tensor, labels: torch.Tensor) -> list[bool]:
        return (predict(logits, self.images.classes).cpu() == labels).tolist()


def spread(
    scorer: Scorer, architectures: Sequence[Architecture], bars: Sequence[Bar | None] | None = None
) -> list[float | Bounds | None]:
    """A ``map`` for `search`: each process scores its share of the candidates, and all get all results.

    Races start from what was known before these candidates, so results do not depend on the number of processes. A
    candidate whose scoring fails has no score; the reason is logged.

    Raises:
        RuntimeError: nothing at all could be scored so far, so that the fault is not a candidate's.
    """
    accelerator, bars = scorer.accelerator, bars or [None] * len(architectures)
    rank, processes, mine = accelerator.process_index, accelerator.num_processes, {}
    with scorer.ready():
        for first in range(0, len(architectures), processes):
            if (place := first + rank) < len(architectures):
                mine[place] = _attempt(scorer, architectures[place], bars[place])
            if scorer.on_scored is not None:
                done = scorer.done + min(first + processes, len(architectures))
                scorer.on_scored(done, _best(scorer.best, *mine.values()))
    outcomes = [outcome for _, outcome in sorted(gather_object(list(mine.items())), key=lambda pair: pair[0])]
    failures = [
        f"{architecture}: {outcome.error}"
        for architecture, outcome in zip(architectures, outcomes, strict=True)
        if outcome.error is not None
    ]
    if len(failures) == len(outcomes) and scorer.best is None:
        raise RuntimeError(f"no candidate could be scored. The first was {failures[0]}")
    if failures and accelerator.is_main_process:
        logger.warning(
            "%d of %d candidates could not be scored: %s", len(failures), len(outcomes), "; ".join(failures)
        )
    scorer.learn(outcomes)
    return [outcome.result for outcome in outcomes]


def _best(best: float | None, *outcomes: Outcome) -> float | None:
    scores = [outcome.result for outcome in outcomes if isinstance(outcome.result, float)]
    return max(scores if best is None else [best, *scores], default=None)


def _attempt(scorer: Scorer, architecture: Architecture, bar: Bar | None) -> Outcome:
    """A race in which a failure is an outcome: the other processes wait for this one's share."""
    try:
        return scorer.race_ready(architecture, bar)
    except Exception as error:
        return Outcome(None, error=f"{type(error).__name__}: {error}")
