"""The main job as stages over one run folder: supernet, search, subnet, baselines, report.

    settings.json                 what was asked
    supernet/                     the trained supernet, a NOAH adapter
    search.json                   every candidate with its score
    adapter-inherited/            the best architecture, cut out of the supernet
    adapter/                      the best architecture, trained again on train + validation: the result
    results.json, results.md      the table
    figures/                      architecture and search, drawn from the files above

A stage that has left its file is not run again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data import bundled_task, load_splits
from peft_noah.evaluation import evaluate
from peft_noah.images import ImageSplit
from peft_noah.jsonfile import dump_json, read_json, write_atomically
from peft_noah.methods import (
    attach,
    count_trainable,
    load_adapter,
    load_backbone,
    needs_interpolation,
    package_versions,
)
from peft_noah.preprocessing import Normalizer, Preprocessing
from peft_noah.progress import Reporter
from peft_noah.publish import ADAPTER, INHERITED, SEARCH, draw_figures, stored_architecture, write_cards
from peft_noah.report import RESULTS_JSON, MethodResult, RunReport
from peft_noah.search import SearchResult, check_budget, scaled_budget, search
from peft_noah.settings import RunSettings
from peft_noah.splits import Splits
from peft_noah.statistics import standard_error
from peft_noah.training import ArchitectureSampler, make_accelerator, train

SETTINGS, SECONDS, SUPERNET, PARTIAL_SEARCH = "settings.json", "seconds.json", "supernet", "search.partial.json"


class Run:
    """A run folder and the stages that fill it.

    Args:
        folder: created if missing.
        settings: None: read from the folder.
        reporter: shows progress.

    Raises:
        ValueError: if the folder holds another run, or none where settings are to be read; or the data cannot be used.
    """

    def __init__(
        self, folder: str | os.PathLike, settings: RunSettings | None = None, reporter: Reporter | None = None
    ):
        self.folder = Path(folder)
        self.settings = self._agree(settings)
        # settings.json is written once all is checked; asked before the processes meet, so that all see the same
        self._prepared = (self.folder / SETTINGS).exists()
        self.accelerator: Accelerator = make_accelerator(self.settings.mixed_precision)
        self.reporter = reporter or Reporter(enabled=self.accelerator.is_main_process)

    def _agree(self, settings: RunSettings | None) -> RunSettings:
        path = self.folder / SETTINGS
        if path.exists():
            found = RunSettings.load(path)
            if settings is not None and settings != found:
                changed = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(found, f.name)]
                raise ValueError(
                    f"{self.folder} holds another run, with other {', '.join(changed)}. Choose another --output, or "
                    "delete that folder."
                )
            return found
        if settings is None:
            raise ValueError(f"{self.folder} holds no run: {SETTINGS} is missing. Start with 'peft-noah supernet'.")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} is not empty and holds no run. Choose another --output.")
        return settings

    # ------------------------------------------------------------------ data and models

    @cached_property
    def splits(self) -> Splits:
        """The task, decoded once."""
        return read_splits(self.settings)

    @cached_property
    def normalize(self) -> Normalizer:
        """The one normalisation of the run."""
        return Normalizer(self.splits.preprocessing)

    def fresh_backbone(self) -> nn.Module:
        """The pretrained backbone with a new classifier, the same each time."""
        return load_backbone(self.settings.backbone, self.splits, self.settings.seed)

    def prepare(self) -> None:
        """Check everything a run needs before anything is written, then write settings.json.

        Raises:
            ValueError: on data, backbone or budget that cannot be used.
        """
        if self._prepared:
            return
        supernet = self._supernet()
        if self.settings.budget is not None:
            check_budget(supernet.get_search_space(), supernet.count_parameters, self.settings.budget)
        self._on_main(self._write_settings)
        self._prepared = True

    def _write_settings(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings.save(self.folder / SETTINGS)

    def _supernet(self) -> PeftModel:
        return attach(self.fresh_backbone(), "supernet", self.settings.recipe, self.settings.search_space)

    def _load(self, name: str) -> PeftModel:
        model = load_adapter(self.fresh_backbone(), self.folder / name)
        return model.to(self.accelerator.device).eval()

    def _train(self, name: str, model: nn.Module, images: ImageSplit, stage: str, sampler=None) -> float:
        with self.reporter.stage(name, "steps") as update:
            log = train(
                model,
                images,
                self.normalize,
                self.settings.training(stage),
                self.accelerator,
                sampler=sampler,
                on_step=lambda step, total, loss: update(step, total, f"loss {loss:.3f}"),
            )
        self.accelerator.free_memory()
        return log.seconds

    def _accuracy(self, model: nn.Module, images: ImageSplit) -> float:
        return evaluate(model, images, self.normalize, self.accelerator)

    # ------------------------------------------------------------------ stages

    def supernet(self) -> None:
        """Train the supernet on the training split, one random subnet a step."""
        self.prepare()
        if (self.folder / SUPERNET).exists():
            return
        model = self._supernet()
        sampler = ArchitectureSampler(model.get_search_space(), self.settings.seed)
        seconds = self._train("supernet", model, self.splits.train, "supernet", sampler)
        model.set_architecture(model.get_search_space().largest())
        self._note_seconds("supernet", seconds)
        self._save(model, SUPERNET)

    def search(self) -> SearchResult:
        """Find the best architecture under the budget, by accuracy on the validation split."""
        path = self.folder / SEARCH
        if path.exists():
            return SearchResult.load(path)
        model = self._load(SUPERNET)
        settings, partial = self.settings.search(), self.folder / PARTIAL_SEARCH
        known = {c.architecture: c.score for c in SearchResult.load(partial).candidates} if partial.exists() else {}
        total, scores = settings.population_size * settings.generations, []

        with self.reporter.stage("search", "candidates") as update:

            def score(architecture: Architecture) -> float:
                if architecture in known:  # the same seed asks for the same candidates again
                    accuracy = known[architecture]
                else:
                    model.set_architecture(architecture)
                    accuracy = self._accuracy(model, self.splits.validation)
                scores.append(accuracy)
                update(len(scores), total, f"best {100 * max(scores):.1f} %")
                return accuracy

            started = time.perf_counter()
            result = search(
                model.get_search_space(),
                score,
                model.count_parameters,
                self.budget(model),
                settings,
                seed=self.settings.seed,
                on_generation=lambda so_far: self._on_main(so_far.save, partial),
                provenance={
                    "recipe": self.settings.recipe,
                    "task": self.splits.to_dict(),
                    "versions": package_versions(),
                },
            )
        self._note_seconds("search", time.perf_counter() - started)
        self._on_main(result.save, path)
        self._on_main(partial.unlink, missing_ok=True)
        return result

    def budget(self, model: PeftModel) -> int:
        """The run's budget in parameters: the given one, or the paper's scaled to the backbone."""
        if self.settings.budget is not None:
            return self.settings.budget
        core = model.base_model.model.config
        return scaled_budget(core.hidden_size, core.num_hidden_layers)

    def inherit(self, architecture: Architecture) -> None:
        """Cut a subnet out of the supernet, save it and report it; its weights are used as they are."""
        if self._reported("noah inherited"):
            return
        started = time.perf_counter()
        inherited = self._load(SUPERNET).extract(architecture).eval()
        accuracies = [self._accuracy(inherited, images) for images in (self.splits.validation, self.splits.test)]
        seconds = self._seconds("supernet") + self._seconds("search") + time.perf_counter() - started
        self._save(inherited, INHERITED)
        self._add("noah inherited", inherited, *accuracies, seconds)
        self._publish()

    def subnet(self, architecture: Architecture | None = None) -> None:
        """Train an architecture from scratch on train + validation, save it as the result, and report it.

        Args:
            architecture: None: the search's best.
        """
        architecture = self.search().best.architecture if architecture is None else architecture
        if not self._reported("noah retrained"):
            self._fit_and_report("noah retrained", architecture, keep=ADAPTER)
            self._publish()
        elif stored_architecture(self.folder / ADAPTER) != architecture:
            raise ValueError(
                f"{self.folder / ADAPTER} holds another architecture already. Train this one in a run folder of its own."
            )

    def everything(self) -> None:
        """All stages in order."""
        self.supernet()
        best = self.search().best.architecture
        for method in self.settings.baselines:
            self.baseline(method)
        self.inherit(best)
        self.subnet(best)

    def _publish(self) -> None:
        self._on_main(draw_figures, self.folder)
        self._on_main(write_cards, self.folder)

    def baseline(self, method: str) -> None:
        """Train a baseline and report it."""
        self.prepare()
        if not self._reported(method):
            self._fit_and_report(method, method)

    def _fit_and_report(self, name: str, method: str | Architecture, keep: str | None = None) -> None:
        """Validation accuracy of a model trained on train, test accuracy of one trained on train + validation."""
        seconds, model = 0.0, None
        accuracies = []
        for images, held_out, where in (
            (self.splits.train, self.splits.validation, "train"),
            (self.splits.train + self.splits.validation, self.splits.test, "train + validation"),
        ):
            model = attach(self.fresh_backbone(), method, self.settings.recipe)
            stage = "full" if method == "full" else "subnet"
            seconds += self._train(f"{name}, on {where}", model, images, stage)
            accuracies.append(self._accuracy(model.eval(), held_out))
        if keep is not None:
            self._save(model, keep)
        self._add(name, model, *accuracies, seconds)

    # ------------------------------------------------------------------ files

    def _save(self, model: PeftModel, name: str) -> None:
        """Write an adapter folder whole: a folder of that name is always a complete one."""
        self._on_main(self._write_adapter, model, name)

    def _write_adapter(self, model: PeftModel, name: str) -> None:
        partial = self.folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        self.splits.preprocessing.processor.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)
        os.replace(partial, self.folder / name)

    def _on_main(self, write: Callable, *args, **kwargs) -> None:
        """Let the main process write, and the others wait for it."""
        if self.accelerator.is_main_process:
            write(*args, **kwargs)
        self.accelerator.wait_for_everyone()

    def _note_seconds(self, stage: str, seconds: float) -> None:
        path = self.folder / SECONDS
        known = read_json(path) if path.exists() else {}
        self._on_main(write_atomically, path, dump_json({**known, stage: seconds}))

    def _seconds(self, stage: str) -> float:
        return float(read_json(self.folder / SECONDS)[stage])

    def report(self) -> RunReport:
        """The results so far."""
        path = self.folder / RESULTS_JSON
        if path.exists():
            return RunReport.load(path)
        core = self.fresh_backbone().config
        return RunReport(
            results=[],
            task=self.splits.to_dict(),
            backbone={
                "model": self.settings.model or "bundled vit-tiny-64",
                "model_type": core.model_type,
                "blocks": core.num_hidden_layers,
                "width": core.hidden_size,
                "interpolated": needs_interpolation(core, self.splits.preprocessing.size),
            },
            preprocessing=self.splits.preprocessing.to_dict(),
            settings={**asdict(self.settings), "supernet_epochs": self.settings.training("supernet").epochs},
            versions=package_versions(),
            architecture=None,
            notes=[],
        )

    def _reported(self, method: str) -> bool:
        path = self.folder / RESULTS_JSON
        return path.exists() and any(result.method == method for result in RunReport.load(path).results)

    def _add(self, name: str, model: nn.Module, validation: float, test: float, seconds: float) -> None:
        parameters, head = count_trainable(model)
        report = self.report()
        if isinstance(model, PeftModel) and name.startswith("noah"):
            report.architecture = model.get_architecture().to_dict()
        report.results.append(
            MethodResult(
                method=name,
                seed=self.settings.seed,
                parameters=parameters,
                head_parameters=head,
                validation=validation,
                test=test,
                n_validation=len(self.splits.validation),
                n_test=len(self.splits.test),
                seconds=seconds,
            )
        )
        self._on_main(report.save, self.folder)


def evaluate_adapter(adapter: str, settings: RunSettings, split: str) -> tuple[float, float, int]:
    """Accuracy of a saved adapter, its standard error, and the number of images of the split.

    Args:
        adapter: folder or Hub id.
        settings: which model and data.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        ValueError: on an unknown split, or an adapter that does not fit model and data.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} is not known. Choose train, validation or test.")
    splits = read_splits(settings)
    images = getattr(splits, split)
    accelerator = make_accelerator(settings.mixed_precision)
    model = load_adapter(load_backbone(settings.backbone, splits, settings.seed), adapter).to(accelerator.device)
    accuracy = evaluate(model, images, Normalizer(splits.preprocessing), accelerator)
    return accuracy, standard_error(accuracy, len(images)), len(images)


def read_splits(settings: RunSettings) -> Splits:
    """The task of a run, decoded once, as its backbone wants it."""
    preprocessing = Preprocessing.from_backbone(
        settings.backbone, settings.image_size, settings.image_mean, settings.image_std
    )
    bundled = settings.dataset is None
    splits = load_splits(
        bundled_task() if bundled else settings.dataset,
        preprocessing,
        image_column=settings.image_column,
        label_column=settings.label_column,
        seed=settings.seed,
    )
    return replace(splits, source="Fashion-MNIST, bundled with peft-noah") if bundled else splits
