"""Does the supernet rank architectures as training each of them from scratch does?

A sample of architectures is scored twice on the same validation images: with weights inherited from the supernet, and
after training from scratch on the training images. The test images are not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.experiments.analysis import RankCorrelation, rank_correlation
from peft_noah.jsonfile import check_int, check_keys, dump_json, read_json, write_atomically
from peft_noah.run.stages import SHARED, Run
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


def rank_architectures(run: Run, architectures: int) -> list[Ranked]:
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
        run.supernet()
    supernet = run.load_supernet()

    def inherited(architecture: Architecture) -> float:
        supernet.set_architecture(architecture)
        return run.validate(supernet)

    sample = random_search(
        supernet.get_search_space(),
        inherited,
        supernet.count_parameters,
        run.budget(supernet),
        architectures,
        seed=run.settings.seed,
    )
    path = run.folder / RANKING
    known = {ranked.architecture: ranked for ranked in load_ranking(path)} if path.exists() else {}
    ranked: list[Ranked] = []
    for index, candidate in enumerate(sample.candidates):
        found = known.get(candidate.architecture)
        if found is None:
            retrained = run.validate_from_scratch(candidate.architecture, f"{index + 1} of {architectures}")
            found = Ranked(candidate.architecture, candidate.parameters, candidate.score, retrained)
        ranked.append(found)
        save_ranking(ranked, path)
    return ranked


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
    data = read_json(Path(path))
    check_keys(data, ("architectures",), f"{os.fspath(path)}")
    if not isinstance(data["architectures"], list) or len(data["architectures"]) > MAX_ARCHITECTURES:
        raise ValueError(f"{os.fspath(path)} does not hold a list of at most {MAX_ARCHITECTURES:,} architectures.")
    ranked = []
    for entry in data["architectures"]:
        check_keys(entry, ("architecture", "parameters", "inherited", "retrained"), "a ranked architecture")
        scores = (entry["inherited"], entry["retrained"])
        if not all(isinstance(score, (int, float)) and 0 <= score <= 1 for score in scores):
            raise ValueError(f"{os.fspath(path)} has scores {scores}; they are shares from 0 to 1.")
        parameters = check_int(entry["parameters"], "parameters", 0, 2**63 - 1)
        ranked.append(Ranked(Architecture(entry["architecture"]), parameters, *map(float, scores)))
    return ranked
