"""How good subnets of a supernet are on a set of images: scored within bounds, on all processes.

search_with_bounds(Evolution(space, count, budget), partial(map_over_processes, scorer))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.fast import fast_forward
from peft_noah.searching.bounding import ImageDifficulty, Outcome, Threshold, bounded_accuracy
from peft_noah.searching.result import BOUNDED, Bounds, SearchResult
from peft_noah.training.evaluation import predict

logger = logging.getLogger(__name__)


class Scorer:
    """Top-1 accuracy of subnets, a fraction, as `evaluate` measures it; or its bounds, where a threshold is missed.

    Every process looks at all images of the candidates that it is given. The order of the images follows from the errors
    of earlier candidates, so it is the same on all processes, see :func:`map_over_processes`.

    Args:
        model: a supernet with ``set_architecture`` and ``.logits``, called with what `images.inputs` gives.
        images: a split of labelled samples, such as an `ImageSplit`.
        normalize: uint8 pixels to the backbone's input; None where samples need no such step.
        accelerator: device, processes and precision.
        batch_size: most images per forward pass.
        on_scored: called as ``on_scored(done, best)`` while candidates are scored, with the number of those done and
            the best score so far, None where there is none; equally often on all processes.

    Attributes:
        known: results of an interrupted search by architecture; they are not scored again.
        difficulty: how often each image was seen so far by all processes together, and classified wrongly.
        done: candidates scored so far, known ones included.
        best: the best score so far; None before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        images: LabelledSplit,
        normalize: Prepare | None,
        accelerator: Accelerator,
        *,
        batch_size: int = 256,
        on_scored: Callable[[int, float | None], object] | None = None,
    ) -> None:
        self.model, self.images, self.normalize, self.accelerator = model, images, normalize, accelerator
        self.batch_size, self.on_scored = batch_size, on_scored
        self.known: dict[Architecture, float | Bounds | None] = {}
        self.difficulty = ImageDifficulty(len(images))
        self.done, self.best = 0, None

    def keep(self, result: SearchResult) -> None:
        """Note in a result's provenance what `resume` needs to go on as if nothing had happened."""
        result.provenance["racing"] = self.difficulty.to_dict()

    def resume(self, result: SearchResult) -> None:
        """Score no candidate of an interrupted search again.

        Raises:
            ValueError: the result has an entry that `keep` cannot have left.
        """
        self.known = {c.architecture: c.bounds if c.state == BOUNDED else c.score for c in result.candidates}
        if "racing" in result.provenance:
            self.difficulty = ImageDifficulty.from_dict(result.provenance["racing"], len(self.images))

    def __call__(self, architecture: Architecture, threshold: Threshold | None = None) -> float | Bounds | None:
        """The accuracy of a subnet; its bounds, where it misses a threshold."""
        with self.ready():
            outcome = self.outcome(architecture, threshold)
        self.learn([outcome])
        return outcome.result

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Make the model ready to score several subnets, and restore its mode: both take a while."""
        was_training = self.model.training
        self.model.eval()
        try:
            with fast_forward(self.model), torch.inference_mode():  # as `evaluate` does
                yield
        finally:
            self.model.train(was_training)

    def outcome(self, architecture: Architecture, threshold: Threshold | None = None) -> Outcome:
        """Score one subnet in this process, inside of :meth:`ready`, without learning from it."""
        if architecture in self.known:
            return Outcome(self.known[architecture])
        self.model.set_architecture(architecture)
        return bounded_accuracy(self._check, self.difficulty, threshold)

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Take in the outcomes of all processes."""
        self.difficulty.learn(outcomes)
        self.done += len(outcomes)
        self.best = _best(self.best, *outcomes)

    def _check(self, images: list[int]) -> list[bool]:
        """Which of these images the active subnet classifies correctly."""
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        with self.accelerator.autocast():
            logits = torch.cat([self._logits(batch) for batch in batches])
        predicted = predict(logits, self.images.classes)
        return (predicted.cpu() == self.images.labels[images]).tolist()

    def _logits(self, images: list[int]) -> torch.Tensor:
        batch = send_to_device(self.images.__getitems__(images), self.accelerator.device)
        return self.model(**self.images.inputs(batch, self.normalize)).logits


def map_over_processes(
    scorer: Scorer, architectures: Sequence[Architecture], thresholds: Sequence[Threshold | None] | None = None
) -> list[float | Bounds | None]:
    """The scores of some architectures: each process scores its share of them, and all get all results.

    The scoring starts from what was known before these candidates, so results do not depend on the number of processes.
    A candidate whose scoring fails has no score; the reason is logged.

    Raises:
        RuntimeError: nothing at all could be scored so far, so that the fault is not a candidate's.
    """
    accelerator, thresholds = scorer.accelerator, thresholds or [None] * len(architectures)
    rank, processes, mine = accelerator.process_index, accelerator.num_processes, {}
    with scorer.ready():
        for first in range(0, len(architectures), processes):
            if (place := first + rank) < len(architectures):
                mine[place] = _attempt(scorer, architectures[place], thresholds[place])
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


def _attempt(scorer: Scorer, architecture: Architecture, threshold: Threshold | None) -> Outcome:
    """An outcome even where scoring fails: the other processes wait for this one's share."""
    try:
        return scorer.outcome(architecture, threshold)
    except Exception as error:
        return Outcome(None, error=f"{type(error).__name__}: {error}")
