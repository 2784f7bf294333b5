"""The paper's evolutionary search for the best mix of prompt modules under a budget of trainable parameters.

    random population -> score -> keep the best as parents -> crossover, mutation, random -> score -> ...

Scoring and counting are functions that the caller gives, so nothing here knows a model. Every draw comes from one random
generator: the same seed gives the same history. An architecture is proposed at most once, and only within the budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.search_space import SearchSpace
from peft_noah.searching.algorithm import optimize
from peft_noah.searching.budget import Count, check_budget, check_count
from peft_noah.searching.result import Bounds, Proposal, SearchResult, SearchSettings

TRIES = 100  # draws for one place in a generation before it is filled in another way
RESTARTS = 10  # random architectures that are shrunk below the budget before a place stays empty
ENUMERABLE = 10_000  # spaces up to this size are listed once, so that no architecture is ever missed

Score = Callable[[Architecture], float | None]
Map = Callable[[Score, list[Architecture]], Iterable[float | None]]


def crossover(a: Architecture, b: Architecture, space: SearchSpace, rng: random.Random) -> Architecture:
    """A child of two architectures: each module's whole row comes from one of them, by a fair coin."""
    return space.build({name: rng.choice((a, b))[name] for name in space.module_order})


def mutate(a: Architecture, space: SearchSpace, settings: SearchSettings, rng: random.Random) -> Architecture:
    """A child of one architecture, with some depths and dims drawn anew as :class:`SearchSettings` says.

    Draws per module, in ``space.module_order``: whether the row mutates; whether its depth does, and then the depth; for
    each block that keeps the module whether its dim does, and then the dim; a dim for each block that is added.
    """
    rows = dict(a)
    for name in space.module_order:
        if rng.random() < settings.mutation_prob:
            rows[name] = _mutate_row(a[name], space, name, settings, rng)
    return space.build(rows)


def _mutate_row(
    row: tuple[int, ...],
    space: SearchSpace,
    name: str,
    settings: SearchSettings,
    rng: random.Random,
) -> list[int]:
    depth = space.depth(name, row)
    new_depth = rng.choice(space.depths[name]) if rng.random() < settings.depth_prob else depth
    kept = [
        rng.choice(space.choices(name, block)) if rng.random() < settings.dim_prob else dim
        for block, dim in enumerate(row[: min(depth, new_depth)])
    ]
    added = [rng.choice(space.choices(name, block)) for block in range(len(kept), new_depth)]
    return kept + added + [0] * (space.num_blocks - new_depth)


def shrink(a: Architecture, space: SearchSpace, rng: random.Random) -> Architecture:
    """A smaller architecture inside the space: in one module, the block-wise minimum with a random row."""
    name = rng.choice(space.module_order)
    return space.build({**a, name: tuple(min(pair) for pair in zip(a[name], space.sample(rng)[name], strict=True))})


class Evolution:
    """The paper's evolution (arXiv 2206.04673) as ask and tell.

    Where the space, or what fits the budget of it, has fewer architectures than are asked for, the search ends when it
    finds no more. In a space of at most 10,000 architectures it finds each that fits, if there are generations enough.

    Only the best candidates so far become parents. So the history stays the same where scoring stops early
    (:class:`Bounds`) for candidates that are not among them.

    Args:
        space: what may be chosen.
        count: trainable prompt parameters of an architecture, the classifier not counted. It must not fall when a dim
            grows.
        budget: the most parameters allowed.
        settings: how the evolution goes; the default variant where left out.
        seed: of the only random generator used (0 or more). The same seed and scores give the same history.
        provenance: plain data to keep with the result; its ``"versions"`` join those of Python and this package.

    Raises:
        BudgetError: not even the smallest architecture fits.
        ValueError: an argument is out of its bounds.

    Attributes:
        result: the search so far. Candidates stand in it in the order in which they were told.

    Examples:
        >>> space = SearchSpace.vtab(4, modules="lora")
        >>> evolution = Evolution(space, lambda architecture: 100 * sum(architecture["lora"]), budget=1_500)
        >>> while proposals := evolution.ask():
        ...     for proposal in proposals:
        ...         row = proposal.architecture["lora"]
        ...         evolution.tell(proposal, row[0] - row[1])
        >>> evolution.result.best.architecture
        Architecture(lora=[10, 0, 0, 0])
    """

    def __init__(
        self,
        space: SearchSpace,
        count: Count,
        budget: int,
        settings: SearchSettings | None = None,
        *,
        seed: int = 0,
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        self.result = SearchResult.new(settings or SearchSettings(), space, budget, seed, provenance)
        check_budget(space, count, self.result.budget)
        self._proposer = _Proposer(space, count, self.result.budget, random.Random(self.result.seed))
        self._generation = 0
        self._waiting: list[Proposal] = []  # of this generation, not asked for yet
        self._asked: set[Proposal] = set()  # asked for, not told yet

    def ask(self, most: int | None = None) -> list[Proposal]:
        """The next architectures to score: those of one generation that were not asked for, at most ``most``.

        Raises:
            ValueError: a new generation is due, and the scores of some proposals have not been told; or ``most`` is not
                a positive whole number.
        """
        if most is not None:
            check_int(most, "most", 1, MAX_COUNT)
        if not self._waiting and self._generation < self.result.settings.generations:
            if self._asked:
                raise ValueError(
                    f"{len(self._asked)} proposals of generation {self._generation - 1} have not been told: "
                    "tell their scores before you ask for the next generation."
                )
            self._waiting = self._breed()
            self._generation += 1
        proposals = self._waiting[:most]
        del self._waiting[: len(proposals)]
        self._asked.update(proposals)
        return proposals

    def tell(self, proposal: Proposal, score: float | Bounds | None) -> None:
        """Take in how good a proposed architecture is.

        Args:
            proposal: one that :meth:`ask` gave; it is told once.
            score: higher is better (no unit); :class:`Bounds` where scoring stopped early; None where it failed.

        Raises:
            ValueError: the proposal is not waiting for a score, or the score is NaN, infinite or no number.
        """
        if proposal not in self._asked:
            raise ValueError(f"{proposal.architecture} is not waiting for a score: tell what was asked for, once.")
        self.result.add(proposal, score)
        self._asked.remove(proposal)

    def _breed(self) -> list[Proposal]:
        """The next generation; empty when the space has nothing new to offer."""
        settings, space = self.result.settings, self.result.space
        history, rng = self.result.candidates, self._proposer.rng
        parents = self.result.ranking()[: settings.num_parents]

        def cross() -> tuple[Architecture, tuple[int, ...]]:
            a, b = rng.sample(parents, 2)
            return crossover(history[a].architecture, history[b].architecture, space, rng), (a, b)

        def change() -> tuple[Architecture, tuple[int, ...]]:
            a = rng.choice(parents)
            return mutate(history[a].architecture, space, settings, rng), (a,)

        plan = [("crossover", cross)] * settings.num_crossover if len(parents) > 1 else []
        plan += [("mutation", change)] * settings.num_mutation if parents else []
        children = (self._proposer.draw(origin, make, self._generation) for origin, make in plan)
        proposals = [child for child in children if child is not None]
        while len(proposals) < settings.population_size:
            if (filler := self._proposer.random(self._generation)) is None:
                break
            proposals.append(filler)
        return proposals


class RandomSearch(Evolution):
    """The control that an evolution must beat: ``evaluations`` random architectures under the same budget.

    It is an :class:`Evolution` of a single generation; the other arguments and errors are the same.
    """

    def __init__(
        self,
        space: SearchSpace,
        count: Count,
        budget: int,
        evaluations: int,
        *,
        seed: int = 0,
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        size = check_int(evaluations, "evaluations", 1, MAX_COUNT)
        settings = SearchSettings(population_size=size, generations=1, num_crossover=0, num_mutation=0)
        super().__init__(space, count, budget, settings, seed=seed, provenance=provenance)


def search(
    space: SearchSpace,
    score: Score,
    count: Count,
    budget: int,
    settings: SearchSettings | None = None,
    *,
    seed: int = 0,
    map: Map = map,
    on_generation: Callable[[SearchResult], object] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> SearchResult:
    """The best architecture under a budget, by :class:`Evolution`; arguments and errors that it has are the same.

    Args:
        score: how good an architecture is (higher is better, no unit), or None where it could not be scored. Called
            once per architecture.
        map: called as ``map(score, architectures)`` once per generation; hand in a pool's to score in parallel.
        on_generation: called with the result so far after each generation, to show or save it.

    Raises:
        BudgetError: not even the smallest architecture fits; raised before anything is scored.
        ValueError: a score is NaN or infinite, or an argument is out of its bounds.

    Examples:
        >>> space = SearchSpace.vtab(4, modules="lora")
        >>> def count(architecture): return 100 * sum(architecture["lora"])
        >>> def score(architecture): return architecture["lora"][0] - architecture["lora"][1]
        >>> search(space, score, count, budget=1_500).best.architecture
        Architecture(lora=[10, 0, 0, 0])
    """
    evolution = Evolution(space, count, budget, settings, seed=seed, provenance=provenance)
    return optimize(evolution, partial(_score_all, score, map), on_round=on_generation)


def random_search(
    space: SearchSpace,
    score: Score,
    count: Count,
    budget: int,
    evaluations: int,
    *,
    seed: int = 0,
    map: Map = map,
    on_generation: Callable[[SearchResult], object] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> SearchResult:
    """The best of ``evaluations`` random architectures, by :class:`RandomSearch`; else it is as :func:`search`."""
    control = RandomSearch(space, count, budget, evaluations, seed=seed, provenance=provenance)
    return optimize(control, partial(_score_all, score, map), on_round=on_generation)


def _score_all(score: Score, map: Map, proposals: list[Proposal]) -> Iterable[float | None]:
    return map(score, [proposal.architecture for proposal in proposals])


class _Proposer:
    """Draws architectures that fit the budget, none of them twice."""

    def __init__(self, space: SearchSpace, count: Count, budget: int, rng: random.Random) -> None:
        self.space, self.count, self.budget, self.rng = space, count, budget, rng
        self.seen: set[Architecture] = set()
        self.unlisted = None if space.size() > ENUMERABLE else list(space)
        rng.shuffle(self.unlisted or [])

    def take(self, architecture: Architecture) -> int | None:
        """Its parameters if it is new and fits, and then it is new no more."""
        if architecture in self.seen:
            return None
        parameters = check_count(self.count, architecture)
        if parameters > self.budget:
            return None
        self.seen.add(architecture)
        return parameters

    def draw(
        self, origin: str, make: Callable[[], tuple[Architecture, tuple[int, ...]]], generation: int
    ) -> Proposal | None:
        """The first child that can be taken; None after a bounded number of tries."""
        for _ in range(TRIES):
            architecture, parents = make()
            if (parameters := self.take(architecture)) is not None:
                return Proposal(architecture, parameters, generation, origin, parents)
        return None

    def random(self, generation: int) -> Proposal | None:
        """A random architecture, as the paper draws it where enough of those fit the budget; None if none is left."""
        if (found := self.draw("random", lambda: (self.space.sample(self.rng), ()), generation)) is not None:
            return found
        for architecture in self._listed() if self.unlisted is not None else self._shrunk():
            if (parameters := self.take(architecture)) is not None:
                return Proposal(architecture, parameters, generation, "random")
        return None

    def _listed(self) -> Iterator[Architecture]:
        while self.unlisted:
            yield self.unlisted.pop()

    def _shrunk(self) -> Iterator[Architecture]:
        for _ in range(RESTARTS):
            architecture = self.space.sample(self.rng)
            for _ in range(TRIES):
                architecture = shrink(architecture, self.space, self.rng)
                yield architecture
        yield self.space.smallest()
