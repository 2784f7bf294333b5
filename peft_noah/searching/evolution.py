"""The paper's evolutionary search for the best mix of prompt modules under a budget of trainable parameters.

    random population -> score -> keep the best as parents -> crossover, mutation, random -> score -> ...

Scoring and counting are handed in as functions, so nothing here knows a model. Every draw comes from one random
generator: the same seed gives the same history. An architecture is scored at most once, and only within the budget.
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from peft_noah.architecture import Architecture, SearchSpace
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.searching.racing import Bar
from peft_noah.searching.result import (
    Bounds,
    Candidate,
    SearchResult,
    SearchSettings,
    check_bounds,
    check_score,
)
from peft_noah.version import __version__

__all__ = [
    "BudgetError",
    "Candidate",
    "SearchResult",
    "SearchSettings",
    "check_budget",
    "crossover",
    "mutate",
    "random_search",
    "scaled_budget",
    "search",
    "shrink",
]

TRIES = 100  # draws for one place in a generation before it is filled in another way
RESTARTS = 10  # random architectures that are shrunk below the budget before a place stays empty
ENUMERABLE = 10_000  # spaces up to this size are listed once, so that no architecture is ever missed

#: of candidates whose scores a raced search knows exactly, whatever the number of parents: what a result is asked for
BEST = 10
ROUND = 10  # candidates of a raced search that are scored against the same bar, at once if there are processes enough

Score = Callable[..., float | Bounds | None]
Count = Callable[[Architecture], int]


class BudgetError(ValueError):
    """No architecture of the search space fits the budget."""


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
            rows[name] = _mutate_row(a[name], a.depth(name), space, name, settings, rng)
    return space.build(rows)


def _mutate_row(
    row: tuple[int, ...],
    depth: int,
    space: SearchSpace,
    name: str,
    settings: SearchSettings,
    rng: random.Random,
) -> list[int]:
    new_depth = rng.choice(space.depths[name]) if rng.random() < settings.depth_prob else depth
    dims = space.dims[name]
    kept = [rng.choice(dims) if rng.random() < settings.dim_prob else dim for dim in row[: min(depth, new_depth)]]
    added = [rng.choice(dims) for _ in range(new_depth - len(kept))]
    return kept + added + [0] * (space.num_blocks - new_depth)


def shrink(a: Architecture, space: SearchSpace, rng: random.Random) -> Architecture:
    """A smaller architecture inside the space: in one module, the block-wise minimum with a random row."""
    name = rng.choice(space.module_order)
    return space.build({**a, name: tuple(min(pair) for pair in zip(a[name], space.sample(rng)[name], strict=True))})


def search(
    space: SearchSpace,
    score: Score,
    count: Count,
    budget: int,
    settings: SearchSettings | None = None,
    *,
    seed: int = 0,
    racing: bool = False,
    map: Callable[..., Iterable[float | Bounds | None]] = map,
    on_generation: Callable[[SearchResult], object] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> SearchResult:
    """The best architecture under a budget, by evolution (arXiv 2206.04673).

    Where the space, or what fits the budget of it, has fewer architectures than are asked for, the search ends when it
    finds no more. A space of at most 10,000 architectures is never left before each that fits has been scored, or the
    last generation is over.

    A raced search has the same history, the same 10 best and the same scores of them, if ``score`` stops early only
    where even the best possible score is below the :class:`~peft_noah.searching.racing.Bar`: only the best candidates so far
    become parents, so nothing depends on how bad the others are.

    Args:
        space: what may be chosen.
        score: how good an architecture is (higher is better, no unit), or None where it could not be scored. Called
            once per architecture.
        count: trainable prompt parameters of an architecture, the classifier not counted. It must not fall when a dim
            grows.
        budget: the most parameters allowed.
        settings: how the evolution goes; the default variant where left out.
        seed: of the only random generator used (0 or more). Same seed and scores, same history.
        racing: tell ``score`` what matters, as ``score(architecture, bar)``: the bar is that of the best 10, or of all
            parents where these are more, and None until there are as many scores. It may then stop early and give
            :class:`Bounds` instead of a score.
        map: called as ``map(score, architectures)`` once per generation, or as ``map(score, architectures, bars)`` for
            every 10 candidates of a raced search; hand in a pool's to score in parallel.
        on_generation: called with the result so far after each generation, to show or save it.
        provenance: plain data to keep with the result; its ``"versions"`` join those of Python and this package.

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
    result = _new_result(space, budget, settings or SearchSettings(), seed, provenance)
    check_budget(space, count, result.budget)
    proposer = _Proposer(space, count, result.budget, random.Random(result.seed))
    for generation in range(result.settings.generations):
        drafts = _breed(result, proposer, generation)
        if not drafts:
            break
        rounds = range(0, len(drafts), ROUND if racing else len(drafts))
        for drafted in (drafts[start : start + rounds.step] for start in rounds):
            bars = (_bars(result, drafted),) if racing else ()
            result.candidates += _scored(drafted, score, map, *bars)
        if on_generation is not None:
            on_generation(result)
    return result


def random_search(
    space: SearchSpace, score: Score, count: Count, budget: int, evaluations: int, *, seed: int = 0, **options: object
) -> SearchResult:
    """The control that an evolution must beat: the best of ``evaluations`` random architectures under the same budget.

    It is :func:`search` with a single generation; the other arguments, options and errors are the same.
    """
    settings = SearchSettings(population_size=evaluations, generations=1, num_crossover=0, num_mutation=0)
    return search(space, score, count, budget, settings, seed=seed, **options)


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
        parameters = check_int(self.count(architecture), f"the count of {architecture}", 0, MAX_COUNT)
        if parameters > self.budget:
            return None
        self.seen.add(architecture)
        return parameters

    def draw(self, origin: str, make: Callable[[], tuple[Architecture, tuple[int, ...]]]) -> Candidate | None:
        """The first child that can be taken; None after a bounded number of tries."""
        for _ in range(TRIES):
            architecture, parents = make()
            if (parameters := self.take(architecture)) is not None:
                return Candidate(architecture, parameters, None, 0, origin, parents)
        return None

    def random(self) -> Candidate | None:
        """A random architecture, as the paper draws it where enough of those fit the budget; None if none is left."""
        if (found := self.draw("random", lambda: (self.space.sample(self.rng), ()))) is not None:
            return found
        for architecture in self._listed() if self.unlisted is not None else self._shrunk():
            if (parameters := self.take(architecture)) is not None:
                return Candidate(architecture, parameters, None, 0, "random")
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


def _breed(result: SearchResult, proposer: _Proposer, generation: int) -> list[Candidate]:
    """The next generation, not scored yet; empty when the space has nothing new to offer."""
    settings, history, rng = result.settings, result.candidates, proposer.rng
    parents = result.ranking()[: settings.num_parents]

    def cross() -> tuple[Architecture, tuple[int, ...]]:
        a, b = rng.sample(parents, 2)
        return crossover(history[a].architecture, history[b].architecture, result.space, rng), (a, b)

    def change() -> tuple[Architecture, tuple[int, ...]]:
        a = rng.choice(parents)
        return mutate(history[a].architecture, result.space, settings, rng), (a,)

    plan = [("crossover", cross)] * settings.num_crossover if len(parents) > 1 else []
    plan += [("mutation", change)] * settings.num_mutation if parents else []
    drafts = [child for origin, make in plan if (child := proposer.draw(origin, make)) is not None]
    while len(drafts) < settings.population_size and (child := proposer.random()) is not None:
        drafts.append(child)
    return [replace(draft, generation=generation) for draft in drafts]


def _bars(result: SearchResult, drafts: list[Candidate]) -> list[Bar | None]:
    """What candidates later than all others must reach to be among those whose scores matter."""
    count = max(BEST, result.settings.num_parents)
    best = result.top(count)
    if len(best) < count:
        return [None] * len(drafts)
    return [Bar(best[-1].score, strict=draft.parameters >= best[-1].parameters) for draft in drafts]


def _scored(drafts: list[Candidate], score: Score, map: Callable, *bars: list[Bar | None]) -> list[Candidate]:
    scores = list(map(score, [draft.architecture for draft in drafts], *bars))
    if len(scores) != len(drafts):
        raise ValueError(f"map(score, architectures) gave {len(scores)} scores for {len(drafts)} architectures.")
    return [_with_score(draft, value) for draft, value in zip(drafts, scores, strict=True)]


def _with_score(draft: Candidate, value: object) -> Candidate:
    if isinstance(value, Bounds):
        return replace(draft, bounds=check_bounds(value, str(draft.architecture)))
    return replace(draft, score=check_score(value, draft.architecture))


def scaled_budget(width: int, num_blocks: int) -> int:
    """The paper's budget for a backbone of another size: ``0.64 M x (width x blocks) / (768 x 12)``, rounded.

    Prompt parameters grow with width times blocks, so this keeps the share of the search space that fits; at ViT-B/16
    it is the paper's 640,000.
    """
    return round(640_000 * width * num_blocks / (768 * 12))


def check_budget(space: SearchSpace, count: Count, budget: int) -> None:
    """Raise BudgetError if not even the smallest architecture fits ``budget``; the sentence says what it costs."""
    smallest = space.smallest()
    if (least := check_int(count(smallest), f"the count of {smallest}", 0, MAX_COUNT)) <= budget:
        return
    nothing = (0,) * space.num_blocks
    alone = {
        name: count(Architecture({**dict.fromkeys(smallest, nothing), name: smallest[name]})) for name in smallest
    }
    raise BudgetError(
        f"no architecture fits a budget of {budget:,} parameters: the smallest in this search space has {least:,} "
        f"({' + '.join(f'{name} {parameters:,}' for name, parameters in alone.items())}). "
        "Raise the budget, or allow smaller dims or depths."
    )


def _new_result(
    space: SearchSpace, budget: int, settings: SearchSettings, seed: int, provenance: Mapping[str, object] | None
) -> SearchResult:
    try:
        plain = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be plain data that JSON can hold ({error}).") from error
    return SearchResult(
        settings=settings,
        space=space,
        budget=check_int(budget, "budget", 0, MAX_COUNT),
        seed=check_int(seed, "seed", 0, MAX_COUNT),
        versions={"python": platform.python_version(), "peft_noah": __version__, **plain.pop("versions", {})},
        provenance=plain,
    )
