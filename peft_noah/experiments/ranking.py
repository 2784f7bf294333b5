"""Does the supernet rank architectures as training each of them from scratch does?

A sample of architectures is scored twice on the same validation images: with weights inherited from the supernet, and
after training from scratch on the training images. The test images are not looked at.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from peft_noah.architecture import Architecture
from peft_noah.experiments.analysis import RankCorrelation, rank_correlation
from peft_noah.jsonfile import MAX_COUNT, check_int, check_keys, check_share, dump_json, load_json, write_atomically
from peft_noah.run.context import RunContext
from peft_noah.run.names import SHARED
from peft_noah.run.registry import Method, transfer
from peft_noah.run.searches import run_budget
from peft_noah.run.stages import validate_from_scratch
from peft_noah.run.supernet import load_supernet, train_supernet
from peft_noah.searching.evolution import random_search
from peft_noah.training.processes import refuse_launcher

RANKING = "ranking.json"
MAX_ARCHITECTURES = 10_000


@dataclass(frozen=True)
class Ranked:
    """An architecture and its two scores, shares of validation images classified right.

    Attributes:
        architecture: one dim per module and block.
        parameters: its prompt parameters.
        inherited: with weights cut out of the supernet.
        retrained: after training from scratch.
    """

    architecture: Architecture
    parameters: int
    inherited: float
    retrained: float


def rank_architectures(run: RunContext, architectures: int) -> list[Ranked]:
    """Score a random sample within the run's budget both ways; resumable, architecture by architecture.

    Args:
        run: its supernet is trained first where that has not been done.
        architectures: size of the sample, 3 or more.

    Raises:
        ValueError: if the number is out of its bounds, the run's data cannot be used, or a launcher started several
            processes.
    """
    refuse_launcher("a ranking")
    check_int(architectures, "architectures", 3, MAX_ARCHITECTURES)
    with run.files.lock(SHARED, wait=True):
        train_supernet(run)
    supernet = load_supernet(run)

    def inherited(architecture: Architecture) -> float:
        supernet.set_architecture(architecture)
        return run.accuracy(supernet, run.splits.validation)

    sample = random_search(
        supernet.get_search_space(),
        inherited,
        supernet.count_parameters,
        run_budget(run, supernet),
        architectures,
        seed=run.settings.seed,
    )
    path = run.folder / RANKING
    known = {ranked.architecture: ranked for ranked in load_ranking(path)} if path.exists() else {}
    ranked: list[Ranked] = []
    for index, candidate in enumerate(sample.candidates):
        found = known.get(candidate.architecture)
        if found is None:
            retrained = validate_from_scratch(
                run, _from_scratch(candidate.architecture, f"{index + 1} of {architectures}")
            )
            found = Ranked(candidate.architecture, candidate.parameters, candidate.score, retrained)
        ranked.append(found)
        save_ranking(ranked, path)
    return ranked


def _from_scratch(architecture: Architecture, name: str) -> Method:
    """A method that is no row of a table; its name shows in the progress."""
    return replace(transfer(name, architecture), name=f"architecture {name}")


def correlation(ranked: Sequence[Ranked]) -> RankCorrelation:
    """Kendall's tau-b between both scores, with its error; raises ValueError as `rank_correlation`."""
    return rank_correlation([entry.inherited for entry in ranked], [entry.retrained for entry in ranked])


def save_ranking(ranked: Sequence[Ranked], path: str | os.PathLike[str]) -> None:
    """Write a sample with its scores to a JSON file, all of it or nothing."""
    entries = [{**vars(entry), "architecture": entry.architecture.to_dict()} for entry in ranked]
    write_atomically(path, dump_json({"architectures": entries}))


def load_ranking(path: str | os.PathLike[str]) -> list[Ranked]:
    """Read what :func:`save_ranking` wrote.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    return load_json(path, _ranking, "a ranking")


def _ranking(data: object) -> list[Ranked]:
    check_keys(data, ("architectures",), "a ranking")
    entries = data["architectures"]
    if not isinstance(entries, list) or len(entries) > MAX_ARCHITECTURES:
        raise ValueError(f"architectures is {reprlib.repr(entries)}; give a list of at most {MAX_ARCHITECTURES:,}.")
    ranked = []
    for entry in entries:
        check_keys(entry, ("architecture", "parameters", "inherited", "retrained"), "a ranked architecture")
        parameters = check_int(entry["parameters"], "parameters", 0, MAX_COUNT)
        scores = (check_share(entry[name], name) for name in ("inherited", "retrained"))
        ranked.append(Ranked(Architecture(entry["architecture"]), parameters, *scores))
    return ranked
