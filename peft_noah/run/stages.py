"""The main job as stages over one run folder: supernet, search, subnet, baselines, controls.

What the folder holds, and in which file, is said in :mod:`peft_noah.run.folder`. A stage that has left its file is not
run again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from peft import PeftModel
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.fast import fast_forward
from peft_noah.results.report import MethodResult, RunReport
from peft_noah.run.architecture_source import read_architecture
from peft_noah.run.context import RunContext
from peft_noah.run.folder import RANDOM_SEARCH, SEARCH, SUPERNET, Busy, adapter_folder, slug
from peft_noah.run.method_names import CONTINUED, INHERITED, NOAH, RANDOM, RETRAINED, SINGLE, TRANSFER
from peft_noah.run.methods import (
    BASELINES,
    SINGLE_MODULES,
    attach,
    count_trainable,
    needs_interpolation,
    package_versions,
)
from peft_noah.run.publishing import publish
from peft_noah.searching.bounding import search_with_bounds
from peft_noah.searching.budget import scaled_budget
from peft_noah.searching.evolution import Evolution, RandomSearch
from peft_noah.searching.result import SearchResult
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training import ArchitectureSampler
from peft_noah.training.interruption import Interruption
from peft_noah.training.memory import peak_memory, start_measuring
from peft_noah.training.processes import is_compiling, total

#: the lock under which a supernet is trained and searched: what several methods share
SHARED = "supernet-and-search"

_STAGES = ("supernet", "search")  # what a method of NOAH's costs before it begins


class Run(RunContext):
    """A run folder and the stages that fill it; arguments and errors are those of `RunContext`."""

    # ------------------------------------------------------------------ supernet and search

    def supernet(self) -> None:
        """Train the supernet on the training split, one random subnet a step."""
        self.prepare()
        if (self.folder / SUPERNET).exists():
            return
        model = self._supernet()
        sampler = ArchitectureSampler(model.get_search_space(), self.settings.seed)
        log = self._train("supernet", model, self.splits.train, self.settings.training("supernet"), sampler)
        model.set_architecture(model.get_search_space().largest())
        self._on_main(self.files.note_stage, "supernet", log.seconds, log.peak_memory)
        self._save(model, SUPERNET)
        self._forget("supernet")

    def search(self) -> SearchResult:
        """Find the best architecture under the budget, by accuracy on the validation split."""
        return self._search("search", SEARCH, Evolution, self.settings.search())

    def random_search(self) -> SearchResult:
        """The control at NOAH's cost: the best of as many random architectures, scored in the same supernet."""
        evaluations = self.settings.search().population_size * self.settings.search().generations
        return self._search(RANDOM, RANDOM_SEARCH, RandomSearch, evaluations)

    def _search(self, name: str, file: str, algorithm: type[Evolution], how: object) -> SearchResult:
        path = self.folder / file
        if path.exists():
            return SearchResult.load(path)
        model, partial = self.load_supernet(), path.with_suffix(".partial.json")
        start_measuring(self.accelerator.device)
        started = time.perf_counter()
        # the weights are made ready once for all candidates, not once for each
        with (
            self.reporter.stage(name, "candidates") as update,
            Interruption() as interruption,
            fast_forward(model),
        ):
            scorer = self._scorer(model, partial, update, interruption)

            def on_round(so_far: SearchResult) -> None:
                scorer.keep(so_far)
                self._on_main(so_far.save, partial)

            searching = algorithm(
                model.get_search_space(),
                model.count_parameters,
                self.budget(model),
                how,
                seed=self.settings.seed,
                provenance={
                    "recipe": self.settings.recipe,
                    "task": self.splits.to_dict(),
                    "versions": package_versions(),
                },
            )
            result = search_with_bounds(searching, functools.partial(map_over_processes, scorer), on_round)
        seconds = time.perf_counter() - started
        self._on_main(self.files.note_stage, name, seconds, peak_memory(self.accelerator.device))
        self._on_main(result.save, path)
        self._on_main(partial.unlink, missing_ok=True)
        return result

    def _scorer(self, model: PeftModel, partial: Path, update: Callable, interruption: Interruption) -> Scorer:
        search = self.settings.search()
        total = search.population_size * search.generations

        def on_scored(done: int, best: float | None) -> None:  # equally often on all processes: they may agree in it
            interruption.check("search stopped", self.accelerator)
            update(done, total, "" if best is None else f"best {100 * best:.1f} %")

        scorer = Scorer(
            model,
            self.splits.validation,
            self.normalize,
            self.accelerator,
            cache_gb=self.settings.cache_gb,
            screen=self.settings.screen,
            on_scored=on_scored,
        )
        if partial.exists():
            scorer.resume(SearchResult.load(partial))
        return scorer

    def budget(self, model: PeftModel) -> int:
        """The run's budget in parameters: the given one, or the paper's scaled to the backbone."""
        if self.settings.budget is not None:
            return self.settings.budget
        core = model.base_model.model.config
        return scaled_budget(core.hidden_size, core.num_hidden_layers)

    # ------------------------------------------------------------------ methods: each adds its line to the table

    def method(self, name: str, architecture: Architecture | None = None) -> None:
        """Run a method of the table, with whatever it needs first.

        Args:
            name: one of `method_names.METHODS`, or ``"transfer <source>"``.
            architecture: of a transfer.

        Raises:
            ValueError: if there is no such method.
            Busy: if another process trains or searches the supernet that the method needs.
        """
        self.prepare()
        if self.files.result(name) is not None:
            self._complete()
            return
        if name in BASELINES:
            self.baseline(name)
        elif name == SINGLE:
            self.best_single()
        elif name in NOAH:
            self.finish(name, self._found(self.search))
        elif name == RANDOM:
            start = self._from_scratch(self._found(self.random_search))
            self._fit_and_report(name, start, after=("supernet", RANDOM))
        elif name.startswith(TRANSFER) and architecture is not None:
            self.transfer(name.removeprefix(TRANSFER), architecture)
        else:
            raise ValueError(f"method {name!r} is not known.")

    def _found(self, find: Callable[[], SearchResult]) -> Architecture:
        with self.alone():
            self.supernet()
            return find().best.architecture

    @contextmanager
    def alone(self, method: str | None = None) -> Iterator[None]:
        """Keep other jobs in the folder off some work; the processes of one job do so together, through the main one.

        Args:
            method: whose work; None: supernet and search.

        Raises:
            ValueError: as `prepare`; nothing is written then.
            Busy: another job is at it; on all processes.
        """
        self.prepare()
        lock = SHARED if method is None else slug(method)
        with ExitStack() as stack:
            busy = None
            if self.accelerator.is_main_process:
                try:
                    stack.enter_context(self.files.lock(lock))
                except Busy as error:
                    busy = error
            (refused,) = total(self.accelerator, busy is not None)
            if refused:
                raise busy or Busy(f"another job is at work on {lock!r} in {self.folder}.")
            yield

    def finish(self, method: str, architecture: Architecture | None = None) -> None:
        """Make an adapter of an architecture of the supernet's space, save it and report it.

        Args:
            method: one of `method_names.NOAH`: the weights are cut out of the supernet as they are, or trained from
                scratch on train + validation, or cut out and trained on there.
            architecture: None: the search's best.

        Raises:
            ValueError: if another architecture was finished in this way already.
        """
        architecture = self.search().best.architecture if architecture is None else architecture
        folder = adapter_folder(method)
        if self.files.result(method) is not None:
            self._check_same(folder, architecture)
            self._complete()
            return
        if method == INHERITED:
            self._inherit(architecture)
        else:
            starts = {RETRAINED: self._from_scratch(architecture), CONTINUED: lambda: self._cut_out(architecture)}
            self._fit_and_report(method, starts[method], keep=folder, after=_STAGES)
        self._publish()

    def _inherit(self, architecture: Architecture) -> None:
        started = time.perf_counter()
        inherited = self._cut_out(architecture).eval()
        validation = self._accuracy(inherited, self.splits.validation)
        seconds = time.perf_counter() - started
        self._save(inherited, adapter_folder(INHERITED))
        self._add(INHERITED, inherited, validation, seconds, after=_STAGES)

    def _cut_out(self, architecture: Architecture) -> PeftModel:
        return self.load_supernet().extract(architecture)

    def _from_scratch(self, method: str | Architecture) -> Callable[[], nn.Module]:
        return lambda: attach(self.fresh_backbone(), method, self.settings.recipe)

    def _check_same(self, folder: str, architecture: Architecture) -> None:
        if read_architecture(self.folder / folder) != architecture:
            raise ValueError(
                f"{self.folder / folder} holds another architecture already. Train this one in a run folder of its own, or "
                "give its file another name."
            )

    def transfer(self, source: str, architecture: Architecture) -> None:
        """Train an architecture that was found elsewhere, save it in a folder of its own, and report it.

        Args:
            source: what tables call the place it comes from.
            architecture: one dim per module and block of this run's backbone.

        Raises:
            ValueError: if another architecture of that name was trained already.
        """
        self.prepare()
        name = f"{TRANSFER}{source}"
        folder = adapter_folder(name)
        if self.files.result(name) is None:
            self._fit_and_report(name, self._from_scratch(architecture), keep=folder)
            self._publish()
        else:
            self._check_same(folder, architecture)
            self._complete()

    def baseline(self, method: str) -> None:
        """Train a baseline and report it."""
        self.prepare()
        if self.files.result(method) is None:
            self._fit_and_report(method, self._from_scratch(method))
        else:
            self._complete()

    def best_single(self) -> None:
        """The control that NOAH must beat: the single module with the best validation accuracy, at the cost of all."""
        for method in SINGLE_MODULES:
            with self.alone(method):
                self.baseline(method)
        reports = [RunReport.load(self.files.result_path(method)) for method in SINGLE_MODULES]
        seconds = sum(report.results[0].seconds for report in reports)
        best = max(reports, key=lambda report: (report.results[0].validation, -report.results[0].parameters))
        chosen = best.results[0]
        note = f"best single: {chosen.method}, chosen on the validation images."
        result = replace(chosen, method=SINGLE, seconds=seconds)
        self._on_main(self.files.add, replace(best, results=[result], notes=[note]))

    def everything(self) -> None:
        """All stages in order.

        Raises:
            Busy: another job is at work on one of them.
        """
        best = self._found(self.search)
        for method in self.settings.baselines:
            with self.alone(method):
                self.baseline(method)
        for method in NOAH:
            with self.alone(method):
                self.finish(method, best)

    def _fit_and_report(
        self, name: str, start: Callable[[], nn.Module], keep: str | None = None, after: tuple[str, ...] = ()
    ) -> None:
        """Validation accuracy of a model trained on train, test accuracy of one trained on train + validation; each from
        what ``start`` gives."""
        training = self.settings.training("full" if name == "full" else "subnet")
        everything = self.splits.train + self.splits.validation
        model = start()
        first, second = f"{name}, on train", f"{name}, on train + validation"
        seconds = self._train(first, model, self.splits.train, training).seconds
        validation = self._accuracy(model.eval(), self.splits.validation)
        model = start()
        seconds += self._train(second, model, everything, training).seconds
        if keep is not None:
            self._save(model, keep)
        self._add(name, model.eval(), validation, seconds, after)
        self._forget(first, second)

    # ------------------------------------------------------------------ files

    def _publish(self, missing_only: bool = False) -> None:
        """Figures and cards, after the results that they show are stored."""

        def write() -> None:
            with self.files.lock("figures", wait=True):
                publish(self.folder, missing_only=missing_only)

        self._on_main(write)

    def _complete(self) -> None:
        """Write what a job that was killed after storing a result, or could not draw, has left out."""
        self._on_main(self.files.complete_table)
        self._publish(missing_only=True)

    def _save(self, model: PeftModel, name: str) -> None:
        """Write an adapter folder whole: a folder of that name is always a complete one."""

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            self.splits.preprocessing.processor.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)

        self._on_main(self.files.write_adapter, name, write)

    def _add(
        self, name: str, model: nn.Module, validation: float, seconds: float, after: tuple[str, ...] = ()
    ) -> None:
        """Read the test images, for the first and only time, and write the result; ``after`` names stages it cost too."""
        parameters, head = count_trainable(model)
        test, other = self.splits.test, self.splits.other_tests.items()
        result = MethodResult(
            method=name,
            seed=self.settings.seed,
            parameters=parameters,
            head_parameters=head,
            validation=validation,
            test=None if test is None else self._accuracy(model, test),
            n_validation=len(self.splits.validation),
            n_test=0 if test is None else len(test),
            seconds=seconds + sum(self.files.seconds(stage) for stage in after),
            tests={other_test: (self._accuracy(model, images), len(images)) for other_test, images in other},
        )
        found = None if name in BASELINES else model.get_architecture().to_dict()
        notes = [f"{note}." for note in self.splits.notes]
        notes += [self._memory_note(after)] if after else []
        self._on_main(self.files.add, replace(self._report(result, found), notes=notes))

    def _memory_note(self, stages: tuple[str, ...]) -> str:
        taken = ", ".join(f"{stage} {self.files.peak_memory(stage) / 1e9:.1f} GB" for stage in stages)
        where = "on the GPU, by torch" if self.accelerator.device.type == "cuda" else "of the whole process"
        return f"peak memory ({where}, main process): {taken}."

    def _report(self, result: MethodResult, architecture: dict[str, list[int]] | None) -> RunReport:
        """One result with all that made it."""
        core = self.fresh_backbone().config
        name = self.settings.task or Path(self.settings.dataset or self.splits.source).name
        return RunReport(
            results=[result],
            task={
                "name": name,
                "group": self.settings.group or "",
                "shots": self.settings.shots,
                **self.splits.to_dict(),
            },
            backbone={
                "model": self.settings.model or "bundled vit-tiny-64",
                "model_type": core.model_type,
                "blocks": core.num_hidden_layers,
                "width": core.hidden_size,
                "interpolated": needs_interpolation(core, self.splits.preprocessing.size),
            },
            preprocessing=self.splits.preprocessing.to_dict(),
            settings={
                **asdict(self.settings),
                "supernet_epochs": self.settings.training("supernet").epochs,
                "compile": is_compiling(self.accelerator),
            },
            versions=package_versions(),
            architecture=architecture,
        )
