"""A race of designs: trained side by side in short rungs, scored on every labelled image, the worse half stops at each rung.

    designs -> train each on each fold for a while -> score it on the images of the other folds -> fewer designs -> ...

Training and scoring are handed in as a function, so nothing here knows a model. The labelled images are cut into folds.
A fold's model is trained on all images but the fold's own, and scored on those; so every image scores every design once,
by a model that has not seen it. Designs are compared image by image, which takes out how hard the images are.

Everything that a race decides follows from its settings, its designs and the scores it was told, in order. So a file of
these is all that a race has to keep, and a race that is told them again stands where it stood.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from peft_noah.jsonfile import check_keys, check_number, dump_json, load_json, write_atomically
from peft_noah.plugins import plugins_among, read_plugins
from peft_noah.searching.design import Design

KIND = "race"
_KEYS = ("kind", "versions", "provenance", "settings", "designs", "told")


@dataclass(frozen=True)
class Rung:
    """One stage of a race.

    Args:
        designs: most designs that take part in it.
        share: how long each of them is trained in it, as a share of a full training of all labelled images; no unit.
    """

    designs: int
    share: float


@dataclass(frozen=True)
class RaceSettings:
    """How a race goes. Its cost is the sum of ``designs * share`` over the rungs, in full trainings.

    Args:
        rungs: the stages in order.
        folds: into how many parts the labelled images are cut; each model is trained on all parts but one. With ``k`` folds a
            design costs ``k - 1`` times as many image passes as with two.
        prior_error: how far a design's lead may lie from its prior, one standard deviation, as a difference of accuracies.
            The smaller it is, the more a measured lead is drawn to the prior.
        lead: how many standard errors another design must be ahead of the default to win.
        surely: how many standard errors, beyond ``slack``, a design must be behind the best to stop at once.
        slack: how far a design may be behind and still catch up, as a difference of scores: a stronger update learns faster at
            first.

    Raises:
        ValueError: on a number out of range, or rungs that grow.
    """

    rungs: tuple[Rung, ...] = (Rung(6, 0.06), Rung(3, 0.10), Rung(2, 0.14))
    folds: int = 2
    prior_error: float = 0.03
    lead: float = 0.5
    surely: float = 3.0
    slack: float = 0.1

    def __post_init__(self) -> None:
        rungs = tuple(rung if isinstance(rung, Rung) else Rung(**rung) for rung in self.rungs)
        object.__setattr__(self, "rungs", rungs)
        if not rungs or any(rung.designs < 1 or not 0 < rung.share < math.inf for rung in rungs):
            raise ValueError(f"rungs are {rungs}; give one or more, each with 1 design or more and a share above 0.")
        if any(after.designs > before.designs for before, after in zip(rungs, rungs[1:], strict=False)):
            raise ValueError(f"rungs are {rungs}; none may have more designs than the one before.")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds!r}; give 2 or more.")
        for name in ("prior_error", "lead", "surely", "slack"):
            check_number(getattr(self, name), name, 0)

    def trained(self, rung: int) -> float:
        """How long a design has been trained when it leaves a rung, as a share of a full training."""
        return sum(each.share for each in self.rungs[: rung + 1])


@dataclass(frozen=True)
class Heat:
    """A piece of work that a race asks for: one design, trained on the images outside one fold up to the end of one rung.

    Args:
        design: index of the design.
        fold: index of the fold whose images score it.
        rung: index of the rung.
    """

    design: int
    fold: int
    rung: int


@dataclass(frozen=True)
class Standing:
    """Where a design stood when a rung ended.

    Args:
        design: index of the design.
        score: mean over all images; no unit.
        lead: over the default design, drawn to the prior, as a difference of scores.
        error: standard error of ``lead``.
        stopped: why it takes part no longer; empty where it goes on.
    """

    design: int
    score: float
    lead: float
    error: float
    stopped: str = ""


class Race:
    """A race, step by step: ``ask`` for work, do it, ``tell`` the scores.

    Args:
        designs: the first is the default, which wins unless another is ahead of it.
        settings: None: the default ones.
        provenance: plain data to keep with the race.
        versions: of the packages that decide a result.

    Raises:
        ValueError: there is no design, or two have the same name.
    """

    def __init__(
        self,
        designs: Sequence[Design],
        settings: RaceSettings | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        names = [design.name for design in designs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a race needs designs of different names, got {names}.")
        self.designs, self.settings = tuple(designs), settings or RaceSettings()
        self.provenance, self.versions = dict(provenance or {}), dict(versions or {})
        self._plugins: dict[str, str] = {}  # as the file says that the race was read from
        self.told: dict[Heat, tuple[float, ...]] = {}
        self.notes: dict[Heat, dict[str, float]] = {}
        self.standings: list[list[Standing]] = []  # of each finished rung, the best first
        by_prior = sorted(range(1, len(designs)), key=lambda index: (-designs[index].prior, index))
        self.running: list[int] = [0, *by_prior][: self.settings.rungs[0].designs]

    @property
    def what(self) -> str:
        """What is classified, one of them in a word: ``"image"`` or ``"text"``."""
        task = self.provenance.get("task")
        return "text" if isinstance(task, Mapping) and task.get("what") == "text" else "image"

    @property
    def rung(self) -> int:
        """Index of the rung that is being run; the number of rungs when the race is over."""
        return len(self.standings)

    @property
    def is_over(self) -> bool:
        """Whether a design has won: the last rung has ended, or one design is left."""
        return self.rung == len(self.settings.rungs) or len(self.running) == 1

    def ask(self) -> list[Heat]:
        """The heats of this rung that have not been told yet; none when the race is over."""
        if self.is_over:
            return []
        folds = range(self.settings.folds)
        heats = (Heat(design, fold, self.rung) for design in self.running for fold in folds)
        return [heat for heat in heats if heat not in self.told]

    def tell(self, heat: Heat, scores: Sequence[float], **notes: float) -> None:
        """Note how well the images of a heat's fold were predicted, one score an image, the higher the better.

        When the last heat of a rung is told, the rung ends: the worse designs stop.

        Args:
            heat: one that was asked for.
            scores: in the order of the fold's images, the same for every design.
            **notes: further numbers to keep, such as accuracy, training loss and image passes. They decide nothing.

        Raises:
            ValueError: the heat was not asked for, or a score is not finite, or there are not as many as for other designs.
        """
        if heat not in self.ask():
            raise ValueError(f"{heat} was not asked for.")
        if not scores or not all(map(math.isfinite, scores)):
            raise ValueError(f"the scores of {heat} are not finite numbers, one an image.")
        for other, told in self.told.items():
            if other.fold == heat.fold and len(told) != len(scores):
                raise ValueError(f"{heat} has {len(scores)} scores, but {other} has {len(told)} for the same images.")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in notes.values()):
            raise ValueError(f"the notes of {heat} are {notes}; give finite numbers.")
        self.told[heat], self.notes[heat] = tuple(map(float, scores)), notes
        if not self.ask():
            self._end_rung()

    def _end_rung(self) -> None:
        standings = sorted(map(self._standing, self.running), key=lambda each: (-each.lead, each.design))
        best, is_last = standings[0], self.rung + 1 == len(self.settings.rungs)
        if is_last:
            going_on = [best.design if best.lead > self.settings.lead * best.error else 0]
        else:
            places = self.settings.rungs[self.rung + 1].designs
            near = [each.design for each in standings if each.design and not self._is_surely_behind(each, best)]
            going_on = [0, *near[: places - 1]]  # the default keeps its place until the end
        self.standings.append([replace(each, stopped=self._why(each, best, going_on)) for each in standings])
        self.running = going_on

    def _is_surely_behind(self, standing: Standing, best: Standing) -> bool:
        mean, error = self._paired(standing.design, best.design)
        return mean < -self.settings.slack - self.settings.surely * error

    def _why(self, standing: Standing, best: Standing, going_on: Sequence[int]) -> str:
        """Why a design takes part no longer; empty where it does."""
        if standing.design in going_on:
            return ""
        if standing.design == best.design:
            return f"ahead of the default by less than {self.settings.lead:g} standard errors"
        if self._is_surely_behind(standing, best):
            return f"surely behind {self.designs[best.design].name}"
        return f"behind {self.designs[going_on[-1 if len(going_on) > 1 else 0]].name}"

    def _standing(self, design: int) -> Standing:
        score = statistics.fmean(self._scores(design))
        if design == 0:
            return Standing(0, score, 0.0, 0.0)
        mean, error = self._paired(design, 0)
        return Standing(design, score, *self._shrunk(mean, error, self.designs[design].prior))

    def _paired(self, design: int, other: int) -> tuple[float, float]:
        """Mean and standard error of the difference of two designs' scores, image by image."""
        if design == other:
            return 0.0, 0.0
        pairs = zip(self._scores(design), self._scores(other), strict=True)
        differences = [mine - others for mine, others in pairs]
        if len(differences) == 1:
            return differences[0], math.inf
        return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))

    def _shrunk(self, mean: float, error: float, prior: float) -> tuple[float, float]:
        """A measured lead drawn to its prior: mean and standard deviation of the product of both normal distributions."""
        spread = self.settings.prior_error
        if error == 0 or spread == 0:
            return (mean, error) if error == 0 else (prior, 0.0)
        weight = spread**2 / (spread**2 + error**2) if math.isfinite(error) else 0.0
        return prior + weight * (mean - prior), spread * math.sqrt(1 - weight)

    def _scores(self, design: int) -> list[float]:
        heats = (Heat(design, fold, self.rung) for fold in range(self.settings.folds))
        return [score for heat in heats for score in self.told[heat]]

    @property
    def winner(self) -> int:
        """Index of the design that has won: the default unless another is ahead of it.

        Raises:
            ValueError: the race is not over.
        """
        if not self.is_over:
            raise ValueError("the race is not over: ask for its heats and tell their scores.")
        return self.running[0]

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, object]:
        """The race as plain data: what it was asked and told, from which everything else follows.

        Where a design has rows of modules from outside, ``plugins`` names the Python module of each.
        """
        plugins = plugins_among(dict.fromkeys(row for design in self.designs for row in design.dims)) | self._plugins
        return {
            "kind": KIND,
            "versions": self.versions,
            "provenance": self.provenance,
            "settings": asdict(self.settings),
            "designs": [design.to_dict() for design in self.designs],
            **({"plugins": plugins} if plugins else {}),
            "told": [
                {**asdict(heat), "notes": self.notes[heat], "scores": list(scores)}
                for heat, scores in self.told.items()
            ],
        }

    @classmethod
    def from_dict(cls, data: object) -> Race:
        """The race that :meth:`to_dict` describes, standing where it stood.

        Raises:
            ValueError: an entry is missing, unknown or cannot be.
        """
        data = {"plugins": {}, **data} if isinstance(data, Mapping) else data
        check_keys(data, (*_KEYS, "plugins"), "a race")
        plugins = read_plugins(data["plugins"])
        if data["kind"] != KIND or not isinstance(data["designs"], list) or not isinstance(data["told"], list):
            raise ValueError("this is not a race: kind, designs or told are others.")
        settings = data["settings"]
        if isinstance(settings, Mapping):  # of before there was slack
            settings = {"slack": 0.0, **settings}
        check_keys(settings, list(RaceSettings.__dataclass_fields__), "the settings of a race")
        try:
            rungs = tuple(Rung(**rung) for rung in settings.pop("rungs"))
            race = cls(
                [Design.from_dict(design) for design in data["designs"]],
                RaceSettings(rungs=rungs, **settings),
                provenance=data["provenance"],
                versions=data["versions"],
            )
            race._plugins = plugins
            for entry in data["told"]:
                check_keys(entry, ("design", "fold", "rung", "notes", "scores"), "a heat of a race")
                heat = Heat(entry["design"], entry["fold"], entry["rung"])
                race.tell(heat, entry["scores"], **entry["notes"])
        except TypeError as error:
            raise ValueError(f"an entry of this race is of another kind ({error}).") from error
        return race

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the race to a JSON file, all of it or nothing."""
        write_atomically(path, dump_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Race:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file cannot be read, or holds something else; the message names it.
        """
        return load_json(path, cls.from_dict, "a race")


def race(
    designs: Sequence[Design],
    score: Callable[[Heat], Sequence[float]],
    settings: RaceSettings | None = None,
    *,
    map: Callable[..., Iterable[Sequence[float]]] = map,
    on_heat: Callable[[Race], object] | None = None,
    **options: Any,
) -> Race:
    """Run a race to its end.

    Args:
        designs: the first is the default.
        score: trains the design of a heat up to the end of its rung, and gives one score for each image of its fold.
        settings: None: the default ones.
        map: called as ``map(score, heats)`` once per rung; hand in a pool's to run heats in parallel.
        on_heat: called with the race after each heat, to show or save it.
        **options: of `Race`.

    Examples:
        >>> designs = [Design("default", {"lora": 8}), Design("strong", {"lora": 8}, {"lora_scale": 4.0})]
        >>> result = race(designs, lambda heat: [0.1 * image + (heat.design == 1) for image in range(50)])
        >>> designs[result.winner].name
        'strong'
    """
    running = Race(designs, settings, **options)
    while heats := running.ask():
        for heat, scores in zip(heats, map(score, heats), strict=True):
            running.tell(heat, scores)
            if on_heat is not None:
                on_heat(running)
    return running
