"""Racing: a candidate is looked at no longer than it takes to know that it does not matter.

    hardest images first -> stop as soon as the bar is out of reach even with every remaining image right

Nothing here knows a model: images are numbers, and a function says which of them a candidate gets right.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from peft_noah.jsonfile import check_int, check_keys
from peft_noah.searching.result import MAX_COUNT, Bounds

#: images: a smaller forward pass costs hardly less, and matrix kernels work in groups of rows, so that an image's result
#: hardly ever depends on the others of its batch
MIN_CHUNK = 8


class Unsure(NamedTuple):
    """An answer that rounding could have changed.

    Attributes:
        right: what it is, if it has not.
        margin: the larger, the less likely it has.
    """

    right: bool
    margin: float = 0.0


#: which of these images are right, in their order
Check = Callable[[list[int]], Sequence[bool | Unsure]]


class Bar(NamedTuple):
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

    def wrong_to_miss(self, size: int) -> int:
        """The fewest wrong ones of ``size`` images that put the bar out of reach; more than ``size`` if none do."""
        return bisect_left(range(size + 1), True, key=lambda wrong: not self.reached_by((size - wrong) / size))


class Outcome(NamedTuple):
    """How a race ended.

    Attributes:
        result: the accuracy, a fraction; its bounds, if the race was stopped; None, if it failed.
        seen: the images looked at.
        wrong: those of them that the candidate gets wrong.
        error: why it failed; None if it did not.
        change: by how much bfloat16 changed a gap at most (`screening`), where images were looked at in float32 too.
    """

    result: float | Bounds | None
    seen: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    error: str | None = None
    change: float | None = None


class Hardness:
    """How often each image was wrong so far, and the order that follows: the hardest first.

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
        """Expected share of candidates that get each image wrong; a half for an image nobody has looked at."""
        return [(wrong + 0.5) / (seen + 1) for wrong, seen in zip(self.wrong, self.seen, strict=True)]

    def order(self) -> list[int]:
        """All images, the hardest first; of equal ones the first."""
        rates = self.rates()
        return sorted(range(len(self)), key=lambda image: -rates[image])

    def learn(self, outcomes: Iterable[Outcome]) -> None:
        """Count what these races saw; their order does not matter."""
        for outcome in outcomes:
            for image in outcome.seen:
                self.seen[image] += 1
            for image in outcome.wrong:
                self.wrong[image] += 1

    def to_dict(self) -> dict[str, list[int]]:
        """The counts as plain data: per image, how many candidates saw it, and got it wrong."""
        return {"seen": list(self.seen), "wrong": list(self.wrong)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], size: int) -> Hardness:
        """The counts that :meth:`to_dict` describes, of ``size`` images.

        Raises:
            ValueError: an entry is missing or cannot be.
        """
        check_keys(data, ["seen", "wrong"], "the counts of a race")
        if not all(isinstance(data[name], list) and len(data[name]) == size for name in ("seen", "wrong")):
            raise ValueError(f"the counts of a race are two lists, each with one number for each of {size} images.")
        hardness = cls(size)
        hardness.seen = [check_int(count, "a count of a race", 0, MAX_COUNT) for count in data["seen"]]
        pairs = zip(data["wrong"], hardness.seen, strict=True)
        hardness.wrong = [check_int(count, "a count of a race", 0, most) for count, most in pairs]
        return hardness


def race(
    check: Check,
    hardness: Hardness,
    bar: Bar | None = None,
    recheck: Check | None = None,
) -> Outcome:
    """Look at images until all are seen or the bar is out of reach.

    The hardest images come first, and what is left out changes nothing: a stopped candidate stays
    below the bar even with every remaining image right. Each look takes as many images as are expected to settle it,
    judging by how often others got them wrong. Unsure answers are asked again before they decide anything, those that
    are likely to be confirmed first, and no more of them than it takes.

    Args:
        check: which of some images the candidate gets right.
        hardness: what is known of the images.
        bar: None: look at all of them.
        recheck: sure answers; needed only if ``check`` gives unsure ones.
    """
    size, rates, order = len(hardness), hardness.rates(), hardness.order()
    limit = size + 1 if bar is None else bar.wrong_to_miss(size)
    seen, wrong = 0, []
    unsure: dict[bool, list[tuple[float, int]]] = {True: [], False: []}  # by what they seem to be

    def ask_again(images: list[int]) -> list[int]:
        return [image for image, right in zip(images, recheck(images), strict=True) if not right] if images else []

    while seen < size and len(wrong) < limit:
        left = [rates[image] for image in order[seen:]]
        missing = limit - len(wrong) - len(unsure[False])
        images = order[seen : seen + _chunk(left, missing)]
        for image, answer in zip(images, check(images), strict=True):
            if isinstance(answer, Unsure):
                unsure[answer.right].append((answer.margin, image))
            elif not answer:
                wrong.append(image)
        seen += len(images)
        while len(wrong) < limit <= len(wrong) + len(unsure[False]):
            unsure[False].sort()
            asked = [unsure[False].pop()[1] for _ in range(limit - len(wrong))]
            wrong += ask_again(asked)
    if seen == size and len(wrong) < limit:
        wrong += ask_again([image for _, image in unsure[True] + unsure[False]])
        unsure = {}
    low, high = (seen - len(wrong) - sum(map(len, unsure.values()))) / size, (size - len(wrong)) / size
    return Outcome(high if low == high else Bounds(low, high), tuple(order[:seen]), tuple(wrong))


def _chunk(rates: list[float], needed: int) -> int:
    """How many of the next images are expected to hold ``needed`` wrong ones, in whole groups of MIN_CHUNK."""
    # a little less than needed: rates of 0.5 must not miss 2 of 4 by a rounding
    count = bisect_left(list(accumulate(rates)), needed - 1e-9) + 1
    return min(-(-count // MIN_CHUNK) * MIN_CHUNK, len(rates))
