"""What a search is told and what it leaves behind: settings, candidates, and the file that keeps them.

Tables, figures and model cards read a search from here, without the search itself.
"""

from __future__ import annotations

import json
import math
import os
import platform
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import MAX_COUNT, check_int, check_keys, check_number, dump_json, load_json, write_atomically
from peft_noah.plugins import plugins_among, read_plugins
from peft_noah.search_space import SearchSpace
from peft_noah.version import __version__

ORIGINS = ("random", "crossover", "mutation")


@dataclass(frozen=True)
class SearchSettings:
    """How the evolution goes: how many candidates of which kind, and how likely a mutation is.

    The first generation is random. Each later one takes the ``num_parents`` best candidates so far as parents, makes
    ``num_crossover`` children of two and ``num_mutation`` children of one, and fills up to ``population_size`` with
    random architectures. So ``population_size * generations`` candidates are scored, and all of them are ranked.

    A mutation visits the row of each module and changes it with ``mutation_prob``: a new depth is drawn with
    ``depth_prob``, and in each block that keeps the module a new dim with ``dim_prob``. Blocks that a greater depth
    adds get random dims. All probabilities lie in 0 to 1 (no unit).

    Three variants have names, see :meth:`named`.

    Raises:
        ValueError: a number is out of its bounds, or the children are more than the population.
    """

    population_size: int = 50
    generations: int = 15
    num_parents: int = 10
    num_crossover: int = 25
    num_mutation: int = 25
    mutation_prob: float = 1.0
    depth_prob: float = 0.2
    dim_prob: float = 0.2

    def __post_init__(self) -> None:
        for name in ("population_size", "generations", "num_parents"):
            object.__setattr__(self, name, check_int(getattr(self, name), name, 1, MAX_COUNT))
        for name in ("num_crossover", "num_mutation"):
            object.__setattr__(self, name, check_int(getattr(self, name), name, 0, self.population_size))
        if self.num_crossover + self.num_mutation > self.population_size:
            raise ValueError(
                f"num_crossover {self.num_crossover} + num_mutation {self.num_mutation} is more than "
                f"population_size {self.population_size}. Lower the first two or raise the last."
            )
        for name in ("mutation_prob", "depth_prob", "dim_prob"):
            check_number(getattr(self, name), name, 0, 1)

    def to_dict(self) -> dict[str, float]:
        """The settings as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> SearchSettings:
        """The settings that :meth:`to_dict` describes.

        Raises:
            ValueError: an entry is missing, unknown, or out of its bounds.
        """
        if isinstance(data, Mapping) and "suffix_mutation" in data:
            raise ValueError("this is a search of the variant 'suffix', which peft-noah had in version 0.1 only.")
        check_keys(data, [entry.name for entry in fields(cls)], "the settings")
        return cls(**data)

    @classmethod
    def named(cls, name: str) -> SearchSettings:
        """The settings of a named variant. Each scores 750 candidates, so that they can be compared.

        - ``"default"``: 15 generations of 50 (25 crossover, 25 mutation), 10 parents. Mutation redraws each depth and
          each dim with probability 0.2, also within the depth that is kept.
        - ``"paper"``: arXiv 2206.04673 gives 5 generations, 50 new subnets each by random pick, crossover and
          mutation, and the probability 0.2. We read: 150 new candidates a generation, all random in the first, which
          has no parents yet; 0.2 for each depth and for each dim. The number of parents is not given: 10, as released.
        - ``"released"``: the authors' code. 15 generations of 50 (25 crossover, 25 mutation), 10 parents; a row
          mutates with 0.2, and then its depth with 0.4; dims are drawn only where the depth grows, so a dim in a block
          that keeps its module never mutates. We differ in one point: that code, like once-for-all's, scores a last
          generation of children and never ranks them; here whatever is scored is ranked.

        In all three, crossover takes whole rows from either parent.

        Raises:
            ValueError: no variant has this name.
        """
        if name not in _VARIANTS:
            raise ValueError(f"no search variant is named {reprlib.repr(name)} (known: {', '.join(_VARIANTS)}).")
        return cls(**_VARIANTS[name])


_VARIANTS: dict[str, dict[str, float]] = {
    "default": {},
    "paper": {"population_size": 150, "generations": 5, "num_crossover": 50, "num_mutation": 50},
    "released": {"mutation_prob": 0.2, "depth_prob": 0.4, "dim_prob": 0.0},
}


class Bounds(NamedTuple):
    """What is known of a candidate whose scoring was stopped: its score is from ``low`` to ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class Proposal:
    """An architecture that a search asks a score for.

    Attributes:
        architecture: the architecture.
        parameters: its trainable prompt parameters, the classifier not counted.
        generation: the round it came from, 0 for the first.
        origin: ``"random"``, ``"crossover"`` or ``"mutation"``.
        parents: where its parents stand in the history.
    """

    architecture: Architecture
    parameters: int
    generation: int
    origin: str
    parents: tuple[int, ...] = ()


SCORED, BOUNDED, FAILED = "scored", "bounded", "failed"


@dataclass(frozen=True)
class Candidate:
    """An architecture that the search has been told a score of, or why there is none; see :attr:`state`.

    Attributes:
        architecture, parameters, generation, origin, parents: as its :class:`Proposal` had them.
        score: what the search maximises (no unit); None unless it is scored.
        bounds: what the score lies between; None unless it is bounded.
    """

    architecture: Architecture
    parameters: int
    score: float | None
    generation: int
    origin: str
    parents: tuple[int, ...] = ()
    bounds: Bounds | None = None

    @property
    def state(self) -> str:
        """How its scoring ended. Only a scored candidate is ever chosen, or becomes a parent.

        - ``"scored"``: its score is known.
        - ``"bounded"``: its scoring stopped early, because it could not be among the best any more.
        - ``"failed"``: it could not be scored.
        """
        if self.score is not None:
            return SCORED
        return FAILED if self.bounds is None else BOUNDED

    def to_dict(self) -> dict[str, object]:
        """The candidate as plain data, ready for JSON; bounds only where there are any."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        values |= {"architecture": self.architecture.to_dict(), "parents": list(self.parents)}
        bounds = values.pop("bounds")
        return values if bounds is None else values | {"bounds": list(bounds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], index: int) -> Candidate:
        """The candidate that :meth:`to_dict` describes, standing at ``index`` of its history.

        Raises:
            ValueError: an entry is missing or cannot be.
        """
        keys = [entry.name for entry in fields(cls)]
        if isinstance(data, Mapping) and "bounds" not in data:
            keys.remove("bounds")
        check_keys(data, keys, f"candidate {index}")
        if data["origin"] not in ORIGINS:
            raise ValueError(
                f"candidate {index} has origin {reprlib.repr(data['origin'])}; known: {', '.join(ORIGINS)}."
            )
        if not isinstance(data["parents"], list) or len(data["parents"]) > 2:
            raise ValueError(
                f"candidate {index} has parents {reprlib.repr(data['parents'])}; give a list of at most 2."
            )
        architecture = Architecture.from_dict(data["architecture"])
        return cls(
            architecture=architecture,
            parameters=check_int(data["parameters"], f"parameters of candidate {index}", 0, MAX_COUNT),
            score=check_score(data["score"], architecture),
            generation=check_int(data["generation"], f"generation of candidate {index}", 0, MAX_COUNT),
            origin=data["origin"],
            parents=tuple(check_int(p, f"a parent of candidate {index}", 0, index - 1) for p in data["parents"]),
            bounds=_read_bounds(data, index),
        )


@dataclass
class SearchResult:
    """Everything a search did: all candidates in the order they were scored, and what made it reproducible.

    Attributes:
        candidates: the history; a candidate's ``parents`` point into it.
        settings, space, budget, seed: what the search was asked. The budget is in parameters.
        versions: versions of Python, of this package, and what the caller added.
        provenance: what else the caller wants kept, as plain data (dataset, backbone, recipe, ...).
        plugins: rows whose prompt modules come from outside, with the Python module that registers each.
    """

    settings: SearchSettings
    space: SearchSpace
    budget: int
    seed: int
    candidates: list[Candidate] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, object] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(
        cls,
        settings: SearchSettings,
        space: SearchSpace,
        budget: int,
        seed: int,
        provenance: Mapping[str, object] | None = None,
    ) -> SearchResult:
        """The result of a search that begins, with the versions of Python and of this package.

        Raises:
            ValueError: budget or seed is out of its bounds, or ``provenance`` is no plain data.
        """
        try:
            plain = json.loads(json.dumps(dict(provenance or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"provenance must be plain data that JSON can hold ({error}).") from error
        return cls(
            settings=settings,
            space=space,
            budget=check_int(budget, "budget", 0, MAX_COUNT),
            seed=check_int(seed, "seed", 0, MAX_COUNT),
            versions={"python": platform.python_version(), "peft_noah": __version__, **plain.pop("versions", {})},
            provenance=plain,
            plugins=plugins_among(space.dims),
        )

    def add(self, proposal: Proposal, score: float | Bounds | None) -> None:
        """Put a proposal with its score at the end of the history; bounds, or None, where there is no score.

        Raises:
            ValueError: the score, or a bound, is NaN, infinite or no number.
        """
        known = {"score": None, "bounds": None}
        if isinstance(score, Bounds):
            known["bounds"] = check_bounds(score, str(proposal.architecture))
        else:
            known["score"] = check_score(score, proposal.architecture)
        self.candidates.append(Candidate(**vars(proposal), **known))

    @property
    def best(self) -> Candidate:
        """The candidate with the highest score; of equal ones that with fewer parameters, then the earlier.

        Raises:
            ValueError: nothing has been scored.
        """
        if not (best := self.top(1)):
            raise ValueError(f"none of the {len(self.candidates)} candidates of this search has a score.")
        return best[0]

    def top(self, k: int) -> list[Candidate]:
        """The ``k`` best candidates, the best first, ordered as for :attr:`best`."""
        return [self.candidates[index] for index in self.ranking()[:k]]

    def ranking(self) -> list[int]:
        """Where the scored candidates stand in the history, the best first, ordered as for :attr:`best`."""
        scored = [index for index, candidate in enumerate(self.candidates) if candidate.state == SCORED]
        return sorted(scored, key=lambda i: (-self.candidates[i].score, self.candidates[i].parameters, i))

    def to_dict(self) -> dict[str, object]:
        """The result as plain data, ready for JSON; plugins only where there are any.

        It holds no time of day: equal searches give equal bytes.
        """
        return {
            "versions": self.versions,
            "provenance": self.provenance,
            "seed": self.seed,
            "budget": self.budget,
            "settings": self.settings.to_dict(),
            "space": self.space.to_dict(),
            **({"plugins": self.plugins} if self.plugins else {}),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a JSON file, all of it or nothing."""
        write_atomically(path, dump_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Read and check what :meth:`save` wrote.

        Raises:
            ValueError: the file cannot be read, is cut short, or holds something else; the message names it.
        """
        return load_json(path, cls.from_dict, "a search result")

    @classmethod
    def from_dict(cls, data: object) -> SearchResult:
        """The result that :meth:`to_dict` describes.

        Raises:
            ValueError: it is none.
        """
        data = {"plugins": {}, **data} if isinstance(data, Mapping) else data
        check_keys(data, [entry.name for entry in fields(cls)], "a search result")
        for name, kind in (("versions", dict), ("provenance", dict), ("candidates", list)):
            if not isinstance(data[name], kind):
                raise ValueError(f"{name} is {reprlib.repr(data[name])}; give a {kind.__name__}.")
        result = cls(
            settings=SearchSettings.from_dict(data["settings"]),
            space=SearchSpace.from_dict(data["space"]),
            budget=check_int(data["budget"], "budget", 0, MAX_COUNT),
            seed=check_int(data["seed"], "seed", 0, MAX_COUNT),
            candidates=[Candidate.from_dict(entry, index) for index, entry in enumerate(data["candidates"])],
            versions=data["versions"],
            provenance=data["provenance"],
            plugins=read_plugins(data["plugins"]),
        )
        for index, candidate in enumerate(result.candidates):
            if candidate.architecture not in result.space or candidate.parameters > result.budget:
                raise ValueError(f"candidate {index} lies outside the search space or above the budget.")
        return result


def _read_bounds(data: Mapping[str, object], index: int) -> Bounds | None:
    if "bounds" not in data:
        return None
    if not isinstance(data["bounds"], list) or len(data["bounds"]) != 2 or data["score"] is not None:
        raise ValueError(
            f"candidate {index} has score {reprlib.repr(data['score'])} and bounds {reprlib.repr(data['bounds'])}; "
            "give a score, or a list of two bounds and no score."
        )
    return check_bounds(data["bounds"], f"candidate {index}")


def check_bounds(values: Sequence[object], what: str) -> Bounds:
    """``values`` as bounds; a ValueError that names what they are of unless both are finite and in order."""
    low, high = (check_score(value, what) for value in values)
    if low is None or high is None or low > high:
        raise ValueError(f"the bounds of {what} are {reprlib.repr(list(values))}; give the lower one first.")
    return Bounds(low, high)


def check_score(value: object, architecture: Architecture | str) -> float | None:
    """``value`` as a finite float, or None; a ValueError that names the architecture for anything else."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"the score of {architecture} is {reprlib.repr(value)}. "
            "A score is a finite number, higher for better, or None where there is none."
        )
    return number
