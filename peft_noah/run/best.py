"""The adapter to use: of all that a run trained and kept, the one that was best on the validation images.

``noah inherited`` does not take part: the search chose it by its accuracy on these very images. Where there was a race its
winner is the best: it was compared with others on all labelled images, but trained for a shorter time meanwhile, so that its
accuracy there is no measure beside those of methods that were trained to the end.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from peft_noah.results.report import RESULTS_JSON, MethodResult, RunReport
from peft_noah.results.statistics import standard_error
from peft_noah.run.folder import RunFolder
from peft_noah.run.names import BEST
from peft_noah.run.registry import method_of_row


@dataclass(frozen=True)
class Best:
    """Which adapter of a run to use, and why.

    Attributes:
        source: the adapter folder whose copy ``best/`` is.
        result: of its method.
        better: the best result of a method that keeps no adapter, where it was above; else None.
        what: one of the samples in a word.
    """

    source: str
    result: MethodResult
    better: MethodResult | None
    what: str = "image"

    def sentence(self) -> str:
        """The same in words."""
        result = self.result
        if result.validation is None:
            return (
                f"use {BEST}/, a copy of {self.source}/: the default design, trained without a race, since it is the only one or "
                "--effort leaves no room for another"
            )
        error = standard_error(result.validation, result.n_validation)
        if method_of_row(result.method).validation is not None:
            return (
                f"use {BEST}/, a copy of {self.source}/: its design won the race. When it was last scored there, before it was "
                f"trained on, it was right on {100 * result.validation:.1f} % ± {100 * error:.1f} of the "
                f"{result.n_validation:,} labelled {self.what}s, each seen by no model that scored it"
            )
        text = (
            f"use {BEST}/, a copy of {self.source}/: {result.method} was best on the {result.n_validation:,} validation "
            f"{self.what}s ({100 * result.validation:.1f} % ± {100 * error:.1f}) of all that was trained and kept"
        )
        if self.better is None:
            return text
        return f"{text}; {self.better.method} had {100 * self.better.validation:.1f} %, but leaves no adapter"


def find_best(folder: str | os.PathLike[str]) -> Best | None:
    """The best of the adapters in a run folder, by validation accuracy and then by fewer parameters; None: there is none.

    Raises:
        ValueError: if results.json is broken.
    """
    folder = Path(folder).expanduser()
    report = RunReport.load(folder) if (folder / RESULTS_JSON).exists() else RunReport()
    kept, others = {}, []
    for result in report.results:
        method = method_of_row(result.method)
        if method is None or method.training is None or method.best_of:
            continue
        if result.validation is None and method.validation is None:
            continue
        if method.keeps is not None and (folder / method.keeps).exists():
            kept[method.keeps] = result
        elif method.keeps is None:
            others.append(result)
    if not kept:
        return None
    raced = [name for name in kept if method_of_row(kept[name].method).validation is not None]
    source = max(raced or kept, key=lambda name: (kept[name].validation or 0.0, -kept[name].parameters))
    if raced:
        return Best(source, kept[source], None, report.what)
    above = [result for result in others if result.validation > kept[source].validation]
    return Best(source, kept[source], max(above, key=lambda result: result.validation, default=None), report.what)


def keep_best(folder: Path) -> None:
    """Make ``best/`` a copy of the best adapter, with its card; what is one already stays as it is."""
    best = find_best(folder)
    if best is None or _same_files(folder / best.source, folder / BEST):
        return
    RunFolder(folder).write_adapter(
        BEST, lambda partial: shutil.copytree(folder / best.source, partial, dirs_exist_ok=True)
    )


def _same_files(folder: Path, other: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    if not other.is_dir() or sorted(names) != sorted(path.name for path in other.iterdir()):
        return False
    return filecmp.cmpfiles(folder, other, names, shallow=False)[0] == names
