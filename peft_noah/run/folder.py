"""The files of a run folder, and who may write them.

    settings.json                 what was asked
    inputs.json                   what was read: the data and the backbone, for later stages to compare
    supernet/                     the trained supernet, a NOAH adapter
    stages.json                   time and peak memory of supernet and searches
    search.json                   every candidate with its score
    random-search.json            the same for the control, random search
    results/<method>.json         one result each: settings, versions, seed, times, parameters, accuracy
    results/<method>.error.json   why a method failed
    log.jsonl                     every step of every training, a line of JSON each; joined from logs/
    results.json, results.md      the table of all results
    adapter/                      the architecture that the search found, trained on train + validation
    adapter-<method>/             what other methods trained: lora, adapter, vpt, inherited, continued, ...
    best/                         a copy of the one that was best on the validation images
    figures/                      architecture and search, drawn from the files above
    logs/<training>.jsonl         loss, learning rate and time of each step
    checkpoints/<training>/       where an interrupted training goes on; removed when its result is there
    tracking/                     files of a tracker such as tensorboard, if one was asked for
    .locks/                       what a process is at work on

A file or adapter folder that is there is complete. Several processes may share a folder: each takes a lock that the
operating system gives back when its process ends, however that happens.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from peft_noah.jsonfile import check_keys, check_number, dump_json, make_plain_folder, read_json, write_atomically
from peft_noah.results.report import RESULTS_JSON, RESULTS_MARKDOWN, MethodResult, RunReport
from peft_noah.run.inputs import INPUTS, is_data, read_inputs
from peft_noah.run.names import LOCKS, LOG, LOGS, RESULTS, SEARCH, SETTINGS, STAGES, slug
from peft_noah.run.registry import method_of_row, table_order
from peft_noah.run.settings import RunSettings
from peft_noah.searching.result import SearchResult

_MAX_ERROR = 10_000
_A_LOOK = 0.2  # seconds; longer than whoever only looks holds a lock


class Busy(Exception):
    """Another process is at work on this; nothing was done."""


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: the folder; made when the first file is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    # ------------------------------------------------------------------ settings

    def agree(self, settings: RunSettings | None) -> RunSettings:
        """The settings of the run in this folder, which must be the ones that are asked for, if any are.

        Raises:
            ValueError: if the folder holds another run, no run where one is expected, or something else.
        """
        if (self / SETTINGS).exists():
            found = RunSettings.load(self / SETTINGS)
            if settings is not None and (changed := settings.differences(found)):
                raise ValueError(
                    f"{self.path} holds another run, with other {', '.join(changed)}. Choose another --output, or "
                    "delete that folder."
                )
            return found
        if settings is None:
            raise ValueError(f"{self.path} holds no run: {SETTINGS} is missing. Start with 'peft-noah supernet'.")
        if self._is_foreign() and not (self / SETTINGS).exists():  # another process may have begun this run meanwhile
            raise ValueError(f"{self.path} is not empty and holds no run. Choose another --output.")
        return settings

    def _is_foreign(self) -> bool:
        """Whether the path holds what no run without settings leaves there; drafts of files are such a run's."""
        if not self.path.is_dir():
            return self.path.exists()
        names, drafts = [entry.name for entry in self.path.iterdir()], (f".{SETTINGS}.", f".{INPUTS}.")
        return any(name not in (LOCKS, RESULTS, INPUTS) and not name.startswith(drafts) for name in names)

    def write_settings(self, settings: RunSettings) -> None:
        """Make the folder and write settings.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        settings.save(self / SETTINGS)

    def data(self) -> Mapping[str, object] | None:
        """The data that the run began with, as `Splits.to_dict()` tells them; None where no file says so.

        A run of an older version has them in its results or its search alone.

        Raises:
            ValueError: if a file is broken.
        """
        found, _ = read_inputs(self.path)
        if found is None:
            results = self._result_paths()
            found = RunReport.load(results[0]).task if results else self._searched()
        return found if is_data(found) else None

    def _searched(self) -> object:
        path = self / SEARCH
        return SearchResult.load(path).provenance.get("task") if path.exists() else None

    # ------------------------------------------------------------------ locks

    @contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[None]:
        """Hold the lock ``name``; it ends with the process that holds it, killed or not.

        Raises:
            Busy: another process holds it, and ``wait`` is False.
        """
        make_plain_folder(self / LOCKS)
        lock = FileLock(self / LOCKS / f"{name}.lock", timeout=-1 if wait else _A_LOOK)
        try:
            lock.acquire()
        except Timeout:
            raise Busy(f"another process is at work on {name!r} in {self.path}.") from None
        try:
            yield
        finally:
            lock.release()

    def locked(self, name: str) -> bool:
        """Whether a process holds the lock ``name`` now."""
        if not (self / LOCKS / f"{name}.lock").exists():
            return False
        try:
            with self.lock(name):
                return False
        except Busy:
            return True

    # ------------------------------------------------------------------ results

    def result_path(self, method: str) -> Path:
        """Where the result of a method stands."""
        return self / RESULTS / f"{slug(method)}.json"

    def error_path(self, method: str) -> Path:
        """Where the error of a failed method stands."""
        return self / RESULTS / f"{slug(method)}.error.json"

    def result(self, method: str) -> MethodResult | None:
        """The result of a method; None where there is none yet."""
        path = self.result_path(method)
        return RunReport.load(path).results[0] if path.exists() else None

    def _result_paths(self) -> list[Path]:
        return sorted(path for path in (self / RESULTS).glob("*.json") if not path.name.endswith(".error.json"))

    def report(self) -> RunReport:
        """All results so far as one report, in the order of the table.

        Raises:
            ValueError: there are none, or a file is broken.
        """
        reports = sorted(map(RunReport.load, self._result_paths()), key=lambda r: table_order(r.results[0].method))
        if not reports:
            raise ValueError(f"{self.path} holds no results yet. Run a method first, such as 'peft-noah baseline'.")
        found = {report.results[0].method: report.architecture for report in reports if report.architecture}
        searched = [
            name for name in found if (method := method_of_row(name)) and method.needs and method.needs.file == SEARCH
        ]
        shown = next((found[name] for name in (*searched, *found)), None)
        return replace(
            reports[0],
            results=[result for report in reports for result in report.results],
            architecture=shown,
            notes=list(dict.fromkeys(note for report in reports for note in report.notes)),
        )

    def add(self, report: RunReport) -> None:
        """Write one result, and the table anew."""
        make_plain_folder(self / RESULTS)
        method = report.results[0].method
        write_atomically(self.result_path(method), dump_json(report.to_dict()))
        self.error_path(method).unlink(missing_ok=True)
        self._write_table()

    def _write_table(self) -> None:
        with self.lock("table", wait=True):
            self.report().save(self.path)
            self._join_logs()

    def complete_table(self) -> None:
        """Write the table anew where it lacks a result, as one does of a job that was killed after storing it."""
        if not self._result_paths():
            return
        whole = all((self / name).exists() for name in (RESULTS_JSON, RESULTS_MARKDOWN))
        if not whole or RunReport.load(self / RESULTS_JSON).results != self.report().results:
            self._write_table()

    def _join_logs(self) -> None:
        """One log for the whole run, from those of its trainings, each of which has one writer."""
        paths = sorted((self / LOGS).glob("*.jsonl"))
        if paths:
            write_atomically(self / LOG, "".join(path.read_text(encoding="utf-8") for path in paths))

    def add_error(self, method: str, error: BaseException) -> None:
        """Note why a method failed."""
        make_plain_folder(self / RESULTS)
        text = "".join(traceback.format_exception(error))[-_MAX_ERROR:]
        data = {"method": method, "error": f"{type(error).__name__}: {error}"[:_MAX_ERROR], "traceback": text}
        write_atomically(self.error_path(method), dump_json(data))

    def error(self, method: str) -> str | None:
        """What a failed method said; None where it has not failed."""
        path = self.error_path(method)
        if not path.exists():
            return None
        data = read_json(path)
        check_keys(data, ("method", "error", "traceback"), f"{path}")
        return str(data["error"])

    def forget(self, method: str) -> None:
        """Remove what a method has left, so that it is run again."""
        for path in (self.result_path(method), self.error_path(method)):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ times and adapters

    def note_stage(self, stage: str, seconds: float, peak_memory: int) -> None:
        """Keep how long a stage took, and how much memory at most, in bytes."""
        path = self / STAGES
        known = read_json(path) if path.exists() else {}
        write_atomically(path, dump_json({**known, stage: {"seconds": seconds, "peak_memory": peak_memory}}))

    def seconds(self, stage: str) -> float:
        """How long a finished stage took, in seconds; raises ValueError where that has not been noted."""
        return float(self._stage(stage)["seconds"])

    def peak_memory(self, stage: str) -> int:
        """How much memory a finished stage took at most, in bytes; raises ValueError where that has not been noted."""
        return int(self._stage(stage)["peak_memory"])

    def _stage(self, stage: str) -> Mapping[str, float]:
        known = read_json(self / STAGES)
        entry = known.get(stage) if isinstance(known, Mapping) else None
        if not isinstance(entry, Mapping):
            raise ValueError(f"{self / STAGES} does not say how long the {stage} took. Train it again.")
        return {
            name: check_number(entry.get(name), f"{name} in {self / STAGES}", 0) for name in ("seconds", "peak_memory")
        }

    def write_adapter(self, name: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` fill a folder, and give it its name when it is whole."""
        partial = self / f"{name}.partial"
        make_plain_folder(partial)  # refuses a link, which rmtree leaves alone
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        shutil.rmtree(self / name, ignore_errors=True)  # of a job that was killed before it could note its result
        os.replace(partial, self / name)
