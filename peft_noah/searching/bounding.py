"""Bounded scoring: the scoring of a candidate stops as soon as it cannot be among the best any more.

    most difficult images first -> stop when the threshold is out of reach, even with every remaining image right

A stopped candidate has no score, but bounds that its score lies between. Nothing here knows a model: images are numbers,
and a function says which of them a candidate classifies correctly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import MAX_COUNT, check_int, check_keys
from peft_noah.searching.algorithm import Algorithm, optimize
from peft_noah.searching.result import Bounds, Proposal, SearchResult

#: of candidates whose scores are always known exactly, whatever the number of parents: what a result is asked for
BEST = 10

#: candidates that are scored against the same threshold, at once if there are processes enough
ROUND = 10

#: images: a smaller forward pass costs hardly less, and matrix kernels work in groups of rows, so that an image's result
#: hardly ever depends on the others of its batch
MIN_CHUNK = 8


class Threshold(NamedTuple):
    """What a candidate must reach to be among the best so far.

    Attributes:
        score: that of the last of the best, in the unit of scores.
        strict: whether an equal score is not enough. It is enough for a candidate with fewer parameters.
    """

    score: float
    strict: bool

    def reached_by(self, score: float) -> bool:
        """Whether a candidate with this score would be among the best."""
        return score > self.score or (score == self.score and not self.strict)

    def errors_to_miss(self, size: int) -> int:
        """The fewest errors on ``size`` images that put the threshold out of reach; more than ``size`` if none do."""
        return bisect_left(range(size + 1), True, key=lambda errors: not self.reached_by((size - errors) / size))


def thresholds(result: SearchResult, proposals: Sequence[Proposal]) -> list[Threshold | None]:
    """The threshold of each proposal; None while there are fewer scored candidates than count as the best.

    The best are the parents of the next generation, and at least the BEST best.
    """
    count = max(BEST, result.settings.num_parents)
    best = result.top(count)
    if len(best) < count:
        return [None] * len(proposals)
    last = best[-1]  # of equal scores that with fewer parameters is better, and then the earlier
    return [Threshold(last.score, strict=proposal.parameters >= last.parameters) for proposal in proposals]


def search_with_bounds(
    algorithm: Algorithm,
    score_all: Callable[[list[Architecture], list[Threshold | None]], Iterable[float | Bounds | None]],
    on_round: Callable[[SearchResult], object] | None = None,
) -> SearchResult:
    """Let an algorithm search with a scoring that may stop early.

    History and best candidates are those of a search that scores every candidate in full, if ``score_all`` gives
    bounds only where even the upper one misses the threshold.

    Args:
        algorithm: an evolution, or another.
        score_all: gives the scores of at most ROUND architectures that have these thresholds, in their order.
        on_round: called with the result so far after each of these rounds, to show or save it.
    """

    def score(proposals: list[Proposal]) -> Iterable[float | Bounds | None]:
        return score_all([proposal.architecture for proposal in proposals], thresholds(algorithm.result, proposals))

    return optimize(algorithm, score, most=ROUND, on_round=on_round)


class Outcome(NamedTuple):
    """How the scoring of one candidate ended.

    Attributes:
        result: the accuracy, a fraction; its bounds, if the scoring was stopped; None, if it failed.
        seen: the images looked at.
        wrong: those of them that the candidate classifies wrongly.
        error: why it failed; None if it did not.
    """

    result: float | Bounds | None
    seen: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    error: str | None = None


class ImageDifficulty:
    """How many candidates classified each image wrongly so far, and the order of the images that follows.

    Args:
        size: number of images.
    """

    def __init__(self, size: int) -> None:
        self.seen, self.wrong = [0] * size, [0] * size

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def evaluations(self) -> int:
        """Images looked at so far, each as often as it was."""
        return sum(self.seen)

    def rates(self) -> list[float]:
        """Expected share of candidates that get each image wrong; a half for an image that nobody has looked at."""
        return [(wrong + 0.5) / (seen + 1) for wrong, seen in zip(self.wrong, self.seen, strict=True)]

    def order(self) -> list[int]:
        """All images, the most difficult first; of equal ones the first."""
        rates = self.rates()
        return sorted(range(len(self)), key=lambda image: -rates[image])

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Count the images that these candidates saw; the order of the outcomes does not matter."""
        for outcome in outcomes:
            for image in outcome.seen:
                self.seen[image] += 1
            for image in outcome.wrong:
                self.wrong[image] += 1

    def to_dict(self) -> dict[str, list[int]]:
        """The counts as plain data: per image, how many candidates saw it, and how many got it wrong."""
        return {"seen": list(self.seen), "wrong": list(self.wrong)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], size: int) -> ImageDifficulty:
        """The counts that :meth:`to_dict` describes, of ``size`` images.

        Raises:
            ValueError: an entry is missing or cannot be.
        """
        check_keys(data, ["seen", "wrong"], "the counts of a search")
        if not all(isinstance(data[name], list) and len(data[name]) == size for name in ("seen", "wrong")):
            raise ValueError(f"the counts of a search are two lists, each with one number for each of {size} images.")
        difficulty = cls(size)
        difficulty.seen = [check_int(count, "a count of a search", 0, MAX_COUNT) for count in data["seen"]]
        pairs = zip(data["wrong"], difficulty.seen, strict=True)
        difficulty.wrong = [check_int(count, "a count of a search", 0, most) for count, most in pairs]
        return difficulty


def bounded_accuracy(
    check: Callable[[list[int]], Sequence[bool]], difficulty: ImageDifficulty, threshold: Threshold | None = None
) -> Outcome:
    """Look at images until all are seen or the threshold is out of reach.

    The most difficult images come first. A stopped candidate stays below the threshold even with every remaining image
    right. Each look takes as many images as are expected to put the threshold out of reach.

    Args:
        check: tells which of some images the candidate classifies correctly, in their order.
        difficulty: of the images, from other candidates.
        threshold: None: look at all of them.
    """
    size, rates, order = len(difficulty), difficulty.rates(), difficulty.order()
    limit = size + 1 if threshold is None else threshold.errors_to_miss(size)
    seen, wrong = 0, []
    while seen < size and len(wrong) < limit:
        left = [rates[image] for image in order[seen:]]
        images = order[seen : seen + _chunk(left, limit - len(wrong))]
        wrong += [image for image, right in zip(images, check(images), strict=True) if not right]
        seen += len(images)
    low, high = (seen - len(wrong)) / size, (size - len(wrong)) / size
    return Outcome(high if low == high else Bounds(low, high), tuple(order[:seen]), tuple(wrong))


def _chunk(rates: list[float], needed: int) -> int:
    """How many of the next images are expected to hold ``needed`` errors, in whole groups of MIN_CHUNK."""
    # a little less than needed: rates of 0.5 must not miss 2 of 4 by a rounding
    count = bisect_left(list(accumulate(rates)), needed - 1e-9) + 1
    return min(-(-count // MIN_CHUNK) * MIN_CHUNK, len(rates))
