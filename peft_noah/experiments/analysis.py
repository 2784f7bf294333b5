"""What a reader asks of a search: do inherited scores rank as retrained ones do, and what do the best share?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from peft_noah.architecture import Architecture
from peft_noah.formatting import module_order
from peft_noah.results.statistics import mean_and_standard_error
from peft_noah.results.table import Entry, Number, Table
from peft_noah.search_space import SearchSpace
from peft_noah.searching.result import SearchResult
from peft_noah.tuner.labels import module_label


@dataclass(frozen=True)
class RankCorrelation:
    """How far two rankings of the same architectures agree.

    Attributes:
        tau: Kendall's tau-b, -1 to 1 (no unit); 0 for rankings that know nothing of each other.
        error: its standard error by the jackknife over architectures; None where there are too few, or too many ties.
        p_value: how likely a tau at least this far from 0 is for unrelated rankings.
        n: number of architectures.
    """

    tau: float
    error: float | None
    p_value: float
    n: int

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2f}"
        return f"Kendall's tau-b {self.tau:.2f}{error} over {self.n} architectures (p = {self.p_value:.2g})"


def rank_correlation(inherited: Sequence[float], retrained: Sequence[float]) -> RankCorrelation:
    """Kendall's tau-b between two scores of the same architectures, such as inherited and retrained accuracy.

    ``tau_b = (C - D) / sqrt((P - T_x) (P - T_y))`` over all ``P = n (n - 1) / 2`` pairs (Kendall 1945). C pairs are ordered
    alike by both scores, D pairs oppositely; T_x pairs tie in the first score, T_y in the second. The formula corrects for
    ties because accuracies over few images tie often.

    The standard error is the jackknife's, ``sqrt((n - 1) / n * sum((tau_(i) - mean)^2))``, where ``tau_(i)`` leaves out
    architecture i. It assumes nothing about ties and has no random part; a bootstrap would make new ties. Use it for ten
    architectures or more. It is 0 where the rankings agree in full, however small n is. The p-value is exact where nothing
    ties; else it is that of the normal approximation with ties.

    Args:
        inherited: n scores, one per architecture, n at least 3.
        retrained: n scores of the same architectures in the same order.

    Raises:
        ValueError: the lengths differ or are below 3, a score is not finite, or all scores of a side are equal.
    """
    from scipy.stats import kendalltau

    n = len(inherited)
    if len(retrained) != n or n < 3:
        raise ValueError(
            f"{n} inherited and {len(retrained)} retrained scores have no rank correlation: give both for the same 3 "
            "architectures or more."
        )
    if not all(map(math.isfinite, (*inherited, *retrained))):
        raise ValueError("a score is not a finite number. Leave out the architectures that failed, on both sides.")
    for name, scores in (("inherited", inherited), ("retrained", retrained)):
        if len(set(scores)) == 1:
            raise ValueError(f"all {n} {name} scores are {scores[0]}: they rank nothing. Give more architectures.")
    whole = kendalltau(inherited, retrained)
    without = [float(kendalltau(_drop(inherited, i), _drop(retrained, i)).statistic) for i in range(n)]
    error = None
    if all(map(math.isfinite, without)):
        # (n - 1) / n * sum of squares = (n - 1)^2 * (squared standard error of the mean)
        error = (n - 1) * mean_and_standard_error(without)[1]
    return RankCorrelation(float(whole.statistic), error, float(whole.pvalue), n)


def _drop(values: Sequence[float], index: int) -> list[float]:
    return [*values[:index], *values[index + 1 :]]


@dataclass(frozen=True)
class Shares:
    """How often each depth and each dim occurs, as shares of a set of architectures (0 to 1).

    Attributes:
        n: number of architectures; None for a uniform draw of the space.
        depths: per module, the share of each depth.
        dims: per module and block (from 0), the share of each dim, 0 where the module is absent.
    """

    n: int | None
    depths: dict[str, dict[int, float]]
    dims: dict[str, tuple[dict[int, float], ...]]

    @classmethod
    def of(cls, architectures: Sequence[Architecture], space: SearchSpace) -> Shares:
        """The shares in some architectures of a space."""
        depths, dims = {}, {}
        for name in space.dims:
            depths[name] = _shares([space.depth(name, a[name]) for a in architectures], space.depths[name])
            columns = zip(*(a[name] for a in architectures), strict=True)
            dims[name] = tuple(_shares(column, space.all_dims(name)) for column in columns)
        return cls(len(architectures), depths, dims)

    @classmethod
    def uniform(cls, space: SearchSpace) -> Shares:
        """The shares that the paper's draw gives: a depth uniformly, then a dim per carrying block; no budget."""
        depths, dims = {}, {}
        for name, allowed in space.depths.items():
            depths[name] = dict.fromkeys(allowed, 1 / len(allowed))
            blocks = []
            for block in range(space.num_blocks):
                carried = sum(depth > block for depth in allowed) / len(allowed)
                shares, choices = {0: 1 - carried}, space.choices(name, block)
                for dim in choices:
                    shares[dim] = shares.get(dim, 0.0) + carried / len(choices)
                blocks.append(shares)
            dims[name] = tuple(blocks)
        return cls(None, depths, dims)


def _shares(values: Sequence[int], choices: Sequence[int]) -> dict[int, float]:
    counts = Counter(values)
    return {choice: counts[choice] / len(values) for choice in choices}


@dataclass(frozen=True)
class BestShare:
    """What the best candidates of searches share, against the others and against a uniform draw of the space.

    Attributes:
        space: the space of all the searches.
        best: shares among the k best candidates of each search, taken together.
        others: shares among all their other candidates.
        uniform: shares of a uniform draw, whatever its number of parameters.
        searches: number of searches.
    """

    space: SearchSpace
    best: Shares
    others: Shares
    uniform: Shares
    searches: int

    def depth_table(self, name: str = "best_depths") -> Table:
        """Per module and depth: its share among the best, among the others, and in a uniform draw, in percent."""
        rows: list[tuple[Entry, ...]] = []
        rules = []
        for module in module_order(self.space.dims):
            rules.append(len(rows))
            for depth in self.space.depths[module]:
                shares = (self.best.depths, self.others.depths, self.uniform.depths)
                rows.append((module_label(module), str(depth), *(_percent(s[module][depth]) for s in shares)))
        header = ("module", "depth", "best", "others", "uniform draw")
        title = "Depths (number of leading blocks) among the best candidates, in % of candidates"
        return Table(name, title, header, tuple(rows), (self._note(),), tuple(rules))

    def dim_table(self, name: str = "best_dims") -> Table:
        """Per module and block: the share of each dim among the best and, in brackets, among the others, in percent."""
        choices = sorted({dim for module in self.space.dims for dim in self.space.all_dims(module)})
        rows: list[tuple[Entry, ...]] = []
        rules = []
        for module in module_order(self.space.dims):
            rules.append(len(rows))
            for block, (best, others) in enumerate(zip(self.best.dims[module], self.others.dims[module], strict=True)):
                shares = [_percent(s.get(choice)) for choice in choices for s in (best, others)]
                rows.append((module_label(module), str(block + 1), *shares))
        header = ["module", "block"]
        for choice in choices:
            dim = "absent" if choice == 0 else f"dim {choice}"
            header += [f"{dim}: best", f"{dim}: others"]
        title = "Dims per block among the best candidates, in % of candidates"
        return Table(name, title, tuple(header), tuple(rows), (self._note(),), tuple(rules))

    def _note(self) -> str:
        searches = "1 search" if self.searches == 1 else f"{self.searches} searches"
        return (
            f"{self.best.n} best and {self.others.n:,} other candidates of {searches}. An evolution looks where it has "
            "found good ones, so its others are no uniform sample; the uniform draw knows no budget. Candidates of one "
            "search descend from each other, so these shares carry no error."
        )


def shared_by_best(searches: SearchResult | Sequence[SearchResult], k: int = 10) -> BestShare:
    """Depths and dims among the k best candidates of each search, against all others.

    Args:
        searches: one search, or several of one space.
        k: how many of each search are its best.

    Raises:
        ValueError: there are no searches, their spaces differ, or one has no more than ``k`` scored candidates.
    """
    searches = [searches] if isinstance(searches, SearchResult) else list(searches)
    if not searches:
        raise ValueError("no searches to look at: give one or more.")
    space = searches[0].space
    best, others = [], []
    for search in searches:
        if search.space != space:
            raise ValueError(f"the searches have different spaces, {space} and {search.space}. Look at them apart.")
        ranking = search.ranking()
        if not 1 <= k < len(ranking):
            raise ValueError(
                f"the {k} best of {len(ranking)} scored candidates are asked for; give a k from 1 to below that."
            )
        chosen = set(ranking[:k])
        for index, candidate in enumerate(search.candidates):
            (best if index in chosen else others).append(candidate.architecture)
    return BestShare(space, Shares.of(best, space), Shares.of(others, space), Shares.uniform(space), len(searches))


def _percent(share: float | None) -> Number | None:
    return None if share is None else Number(100 * share, decimals=0)
