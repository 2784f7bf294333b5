"""The results of a run as plain data: one line per method and seed, and the table that compares them.

Every accuracy comes with its standard error, and nothing is set in bold that the error does not carry.
"""

from __future__ import annotations

import json
import os
import reprlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft_noah.architecture import Architecture
from peft_noah.formatting import escape, facts, one_line
from peft_noah.jsonfile import (
    MAX_COUNT,
    check_int,
    check_keys,
    check_number,
    check_share,
    dump_json,
    load_json,
    write_atomically,
)
from peft_noah.results.statistics import Estimate, clear_winner
from peft_noah.results.table import Number, Table, bold_note, count_range, one_seed_note
from peft_noah.tuner.labels import architecture_table

if TYPE_CHECKING:
    import rich.table

RESULTS_JSON, RESULTS_MARKDOWN = "results.json", "results.md"
MAX_RESULTS = 10_000
MAX_NOTES = 1_000
MAX_TEXT = 10_000
MAX_NAME = 200

# The line breaks are for the terminal, where the table must fit 80 columns.
_HEADER = (
    "method",
    "prompt\nparameters",
    "head\nparameters",
    "validation\naccuracy\n(%) ± s.e.",
    "test\naccuracy\n(%) ± s.e.",
    "seconds",
)
_SECTIONS = ("task", "backbone", "preprocessing", "settings", "versions")


@dataclass(frozen=True)
class MethodResult:
    """How one method did with one seed.

    Attributes:
        method: its name in the table.
        seed: of everything random in it (0 or more).
        parameters: trainable prompt parameters, the classifier not counted.
        head_parameters: trainable parameters of the classifier.
        validation: share of validation images classified right, 0 to 1; None where they were trained on.
        test: share of test images classified right, 0 to 1; None where there are no labelled test images.
        n_validation: number of validation images.
        n_test: number of test images.
        seconds: wall-clock time of training and search.
        tests: accuracy (share, 0 to 1) and number of images by the name of each further test set, as domain
            generalisation has them.

    Raises:
        ValueError: a value is out of its bounds.
    """

    method: str
    seed: int
    parameters: int
    head_parameters: int
    validation: float | None
    test: float | None
    n_validation: int
    n_test: int
    seconds: float
    tests: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not 1 <= len(one_line(self.method)) or len(self.method) > MAX_NAME:
            raise ValueError(
                f"the method is named {reprlib.repr(self.method)}; give a name of 1 to {MAX_NAME} letters."
            )
        lows = {"seed": 0, "parameters": 0, "head_parameters": 0, "n_validation": 0, "n_test": 0}
        for split in ("validation", "test"):
            if getattr(self, split) is not None:
                lows[f"n_{split}"] = 1
                check_share(getattr(self, split), f"{split} of {self.method!r}")
        for name, low in lows.items():
            object.__setattr__(
                self, name, check_int(getattr(self, name), f"{name} of {self.method!r}", low, MAX_COUNT)
            )
        if self.test is None and self.n_test:
            raise ValueError(
                f"test of {self.method!r} is None with {self.n_test:,} test images; give the accuracy on them, or n_test 0."
            )
        check_number(self.seconds, f"seconds of {self.method!r}", 0)
        object.__setattr__(self, "tests", self._checked_tests())

    def _checked_tests(self) -> dict[str, tuple[float, int]]:
        if not isinstance(self.tests, Mapping) or len(self.tests) > MAX_RESULTS:
            raise ValueError(f"tests of {self.method!r} is {reprlib.repr(self.tests)}; give accuracies by name.")
        checked = {}
        for name, entry in self.tests.items():
            if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
                raise ValueError(f"a test set of {self.method!r} is named {reprlib.repr(name)}; give a short name.")
            if not isinstance(entry, (list, tuple)) or len(entry) != 2:
                raise ValueError(f"test set {name!r} has {reprlib.repr(entry)}; give accuracy and number of images.")
            accuracy = check_share(entry[0], f"the accuracy on {name!r}")
            checked[name] = (accuracy, check_int(entry[1], f"the number of images of {name!r}", 1, MAX_COUNT))
        return checked


@dataclass
class RunReport:
    """All results of a run, and what made them.

    Attributes:
        results: one entry per method and seed, in the order of the table.
        task, backbone, preprocessing, settings, versions: plain data that says what was run on what.
        architecture: the dims found, one row per prompt module; None where there is none.
        notes: sentences to stand below the table.
    """

    results: list[MethodResult] = field(default_factory=list)
    task: dict[str, object] = field(default_factory=dict)
    backbone: dict[str, object] = field(default_factory=dict)
    preprocessing: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    versions: dict[str, object] = field(default_factory=dict)
    architecture: dict[str, list[int]] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """One of the samples in a word: ``"image"`` or ``"text"``."""
        return "text" if self.task.get("what") == "text" else "image"

    def to_dict(self) -> dict[str, object]:
        """The report as plain data, ready for JSON.

        Raises:
            ValueError: an entry cannot be kept, or two results are of the same method and seed.
        """
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name in _SECTIONS:
            if not isinstance(data[name], Mapping):
                raise ValueError(f"{name} is {reprlib.repr(data[name])}; give a mapping.")
        _check_list("notes", self.notes, MAX_NOTES)
        for note in self.notes:
            if not isinstance(note, str) or len(note) > MAX_TEXT:
                raise ValueError(f"a note is {reprlib.repr(note)}; give a text of at most {MAX_TEXT:,} letters.")
        _check_results(self.results)
        data["results"] = [asdict(result) for result in self.results]
        if self.architecture is not None:
            data["architecture"] = Architecture(self.architecture).to_dict()
        try:
            return json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"a report holds only plain data that JSON can hold ({error}).") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write results.json and results.md into a folder, which is made where it is missing.

        Raises:
            ValueError: an entry cannot be kept; nothing is written then.
            OSError: the folder cannot be written.
        """
        data, text = dump_json(self.to_dict()), self.to_markdown()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RESULTS_JSON, data)
        write_atomically(folder / RESULTS_MARKDOWN, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunReport:
        """Read and check results.json, given as the file or as the folder that holds it.

        Raises:
            ValueError: the file cannot be read, is cut short, or holds something else; the message names it.
        """
        path = Path(path)
        path = path / RESULTS_JSON if path.is_dir() else path
        return load_json(path, cls.from_dict, "the results of a run")

    @classmethod
    def over_seeds(cls, reports: Sequence[RunReport]) -> RunReport:
        """Runs that differ in their seeds as one report, whose table shows means over them.

        Raises:
            ValueError: the runs differ in more, or two results are of the same method and seed.
        """
        first = reports[0]
        for report in reports[1:]:
            if changed := first._differences(report):
                raise ValueError(
                    f"these runs differ in {', '.join(changed)}: a mean is over runs that differ in their seed only."
                )
        merged = replace(first, results=[result for report in reports for result in report.results])
        if len(reports) > 1:  # each seed found an architecture of its own
            merged = replace(merged, architecture=None, settings={**merged.settings, "seed": "as in the table"})
        return merged

    def _differences(self, other: RunReport) -> list[str]:
        """What made another report and not this one, but for seeds and what changes no result."""
        free = {
            "seed",
            "baselines",
            "dataset",
            "task",
            "task_name",
            "cache_gb",
            "screen",
        }  # the last two: of earlier versions
        names = [name for name in self.settings if name in other.settings and name not in free]
        changed = [name for name in names if self.settings[name] != other.settings[name]]
        changed += [name for name in ("backbone", "preprocessing") if getattr(self, name) != getattr(other, name)]
        # a seed may choose the images, but then from the same dataset
        images = self.task.get("fingerprint") == other.task.get("fingerprint")
        if not images and self.settings.get("dataset") != other.settings.get("dataset"):
            changed.append("images")
        return changed

    @classmethod
    def from_dict(cls, data: object) -> RunReport:
        """The report that :meth:`to_dict` describes.

        Raises:
            ValueError: it is none.
        """
        check_keys(data, [entry.name for entry in fields(cls)], "a report")
        _check_list("results", data["results"], MAX_RESULTS)
        names = [entry.name for entry in fields(MethodResult)]
        for entry in data["results"]:
            if isinstance(entry, Mapping):  # results of version 0.1.0 have no further test sets
                entry = {"tests": {}, **entry}
            check_keys(entry, names, "a result")
        report = cls(**{**data, "results": [MethodResult(**entry) for entry in data["results"]]})
        return cls(**{**report.to_dict(), "results": report.results})

    def to_table(self) -> Table:
        """One row per method, means over its seeds with their standard errors, and the footnotes that they need."""
        _check_results(self.results)
        methods: dict[str, list[MethodResult]] = {}
        for result in self.results:
            methods.setdefault(result.method, []).append(result)
        tests = {name: test for name, results in methods.items() if (test := _accuracy(results, "test")) is not None}
        winner = clear_winner(tests)
        mixed = len({len(results) == 1 for results in methods.values()}) == 2
        rows = []
        for name, results in methods.items():
            parameters, head, seconds = (_mean(results, what) for what in ("parameters", "head_parameters", "seconds"))
            validation, test = _accuracy(results, "validation"), tests.get(name)
            row = (
                f"{name} †" if mixed and len(results) == 1 else name,
                Number(parameters, decimals=0),
                Number(head, decimals=0),
                None if validation is None else Number.percent(validation),
                None if test is None else Number.percent(test, bold=name == winner),
                Number(seconds, decimals=0 if seconds >= 100 else 1),
            )
            rows.append(row)
        return Table(
            "results", "Results", _HEADER, tuple(rows), tuple(_footnotes(list(methods.values()), mixed, self.what))
        )

    def to_markdown(self) -> str:
        """The table with its footnotes, the architecture, and what was run, as Markdown."""
        parts = [self.to_table().to_markdown(level=1).rstrip("\n")]
        if self.notes:
            parts.append("\n".join(f"- {escape(note)}" for note in self.notes))
        if self.architecture is not None:
            parts += ["## Architecture found (dims; 0: absent)", architecture_table(self.architecture)]
        for name in _SECTIONS:
            # A task may name the preprocessing too; the run has one, and it has its own section.
            values = {key: value for key, value in getattr(self, name).items() if key not in _SECTIONS}
            if values:
                parts += [f"## {name.capitalize()}", facts(values)]
        return "\n\n".join(parts) + "\n"

    def to_rich_table(self) -> rich.table.Table:
        """The same table for the terminal, with its footnotes and notes below."""
        shown = self.to_table()
        return replace(shown, title="", notes=(*shown.notes, *self.notes)).to_rich()


def _check_list(name: str, values: object, longest: int) -> None:
    if not isinstance(values, list) or len(values) > longest:
        raise ValueError(f"{name} is {reprlib.repr(values)}; give a list of at most {longest:,} entries.")


def _check_results(results: Sequence[MethodResult]) -> None:
    _check_list("results", results, MAX_RESULTS)
    seen = set()
    for result in results:
        if (result.method, result.seed) in seen:
            raise ValueError(f"two results are of method {result.method!r} with seed {result.seed}. Keep one of them.")
        seen.add((result.method, result.seed))


def _accuracy(results: Sequence[MethodResult], split: str) -> Estimate | None:
    """Accuracy on ``"validation"`` or ``"test"`` over seeds; None where it was not measured with each."""
    measured = {result.seed: (getattr(result, split), getattr(result, f"n_{split}")) for result in results}
    if any(accuracy is None for accuracy, _ in measured.values()):
        return None
    return Estimate.over_seeds(measured)


def _mean(results: Sequence[MethodResult], name: str) -> float:
    return statistics.fmean(getattr(result, name) for result in results)


def _footnotes(methods: Sequence[Sequence[MethodResult]], mixed: bool, what: str) -> list[str]:
    """The footnotes that a table of these methods, each with its seeds, needs."""
    notes = []
    if several := [len(results) for results in methods if len(results) > 1]:
        notes.append(
            f"± s.e.: mean over {count_range(several)} seeds and its standard error, the sample standard deviation over "
            "the square root of the number of seeds. Parameters and seconds are means over seeds."
        )
    if single := [results[0] for results in methods if len(results) == 1]:
        validated = [result.n_validation for result in single if result.validation is not None]
        tested = [result.n_test for result in single if result.test is not None]
        counted = [(validated, "validation"), (tested, "test")]
        counts = [f"{count_range(numbers)} ({split})" for numbers, split in counted if numbers]
        n = f", with n = {' and '.join(counts)}" if counts else ""
        notes.append(one_seed_note("†" if mixed else "± s.e.", f"{what}s", n))
    if any(result.validation is None for results in methods for result in results):
        notes.append(f"–: trained on train and validation {what}s together, so there is no validation accuracy.")
    if any(result.test is None for results in methods for result in results):
        notes.append(f"– in the column of test accuracy: there are no labelled test {what}s, so it was not measured.")
    if len(methods) > 1:
        notes.append(bold_note("the best test accuracy"))
    return notes
