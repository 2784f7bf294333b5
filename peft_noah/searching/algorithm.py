"""A search algorithm proposes architectures (ask) and learns their scores (tell); a loop joins it with a scorer.

while proposals := algorithm.ask():
    for proposal in proposals:
        algorithm.tell(proposal, score(proposal.architecture))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from peft_noah.searching.result import Bounds, Proposal, SearchResult


class Algorithm(Protocol):
    """What a search algorithm has: two methods, and the result that they fill.

    Attributes:
        result: the search so far.
    """

    result: SearchResult

    def ask(self, most: int | None = None) -> list[Proposal]:
        """The next architectures to score, at most ``most`` of them; an empty list ends the search."""

    def tell(self, proposal: Proposal, score: float | Bounds | None) -> None:
        """Take in how good a proposed architecture is.

        Args:
            proposal: one that :meth:`ask` gave.
            score: higher is better (no unit); :class:`Bounds` where scoring stopped early; None where it failed.
        """


def optimize(
    algorithm: Algorithm,
    score_all: Callable[[list[Proposal]], Iterable[float | Bounds | None]],
    *,
    most: int | None = None,
    on_round: Callable[[SearchResult], object] | None = None,
) -> SearchResult:
    """Ask, score and tell until the algorithm has nothing to propose.

    Args:
        algorithm: what proposes.
        score_all: gives the scores of some proposals, in their order.
        most: proposals to ask for at once; None: as many as the algorithm gives.
        on_round: called with the result so far each time that scores have been told, to show or save it.

    Raises:
        ValueError: ``score_all`` gives more or fewer scores than there are proposals, or one that is not finite.
    """
    while proposals := algorithm.ask(most):
        scores = list(score_all(proposals))
        if len(scores) != len(proposals):
            raise ValueError(f"the scoring gave {len(scores)} scores for {len(proposals)} architectures.")
        for proposal, score in zip(proposals, scores, strict=True):
            algorithm.tell(proposal, score)
        if on_round is not None:
            on_round(algorithm.result)
    return algorithm.result
