"""What every stage of a run works with: its folder, settings, data and backbone; training and accuracy."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from peft_noah.architecture import Architecture
from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.splits import Splits
from peft_noah.data.tokenization import Tokenization
from peft_noah.jsonfile import check_number, refuse_link
from peft_noah.progress import Reporter
from peft_noah.run.folder import Busy, RunFolder
from peft_noah.run.inputs import INPUTS, check_backbone, check_data, read_inputs, write_inputs
from peft_noah.run.models import add_design, add_supernet, classifiers, load_backbone
from peft_noah.run.names import CHECKPOINTS, DESIGN, LOGS, SETTINGS, TRACKING, slug
from peft_noah.run.settings import RunSettings
from peft_noah.run.tasks import check_task, read_data, read_preprocessing
from peft_noah.searching.design import Design
from peft_noah.training import TrainingLog, TrainingSettings, make_accelerator, train
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.evaluation import evaluate
from peft_noah.training.head_start import check_head
from peft_noah.training.interruption import Interruption
from peft_noah.training.processes import (
    alone,
    asked_micro_batches,
    describe,
    together,
    total,
    warn_of_other_precision,
)
from peft_noah.training.tracking import StepLog, check_tracker, start_trackers
from peft_noah.tuner.backbones import find_backbone
from peft_noah.tuner.fingerprint import fingerprint_backbone


class RunContext:
    """What every stage of a run works with: its folder, settings, data, backbone, processes and training.

    Args:
        folder: created if missing.
        settings: None: read from the folder.
        reporter: shows progress.
        checkpoint_seconds: time between two checkpoints of a training; results do not depend on it.
        log_with: a tracker of Accelerate's, such as ``"tensorboard"``, for losses and rates.

    Raises:
        ValueError: if the folder holds another run, or none where settings are to be read; or the data cannot be used;
            or the tracker is not known or not installed; or ``checkpoint_seconds`` is no number above 0.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: RunSettings | None = None,
        reporter: Reporter | None = None,
        *,
        checkpoint_seconds: float = 60.0,
        log_with: str | None = None,
    ):
        check_tracker(log_with)
        self._checkpoint_seconds = check_number(checkpoint_seconds, "checkpoint_seconds", above=0)
        self.files = RunFolder(folder)
        self.folder = self.files.path
        self.settings = self.files.agree(settings)
        # what is left to Accelerate is settled now, for all stages
        if self.settings.accumulate is None:
            self.settings = replace(self.settings, accumulate=asked_micro_batches())
        warn_of_other_precision(self.settings.mixed_precision)
        # settings.json is written once all is checked; asked before the processes meet, so that all see the same
        self._prepared, self._recorded = ((self.folder / name).exists() for name in (SETTINGS, INPUTS))
        self.accelerator: Accelerator = make_accelerator(
            self.settings.mixed_precision,
            self.settings.compile_mode,
            log_with=log_with,
            project_dir=self.folder / TRACKING,
        )
        self.settings = replace(self.settings, mixed_precision=self.accelerator.mixed_precision)
        self.reporter = reporter or Reporter(enabled=self.accelerator.is_main_process)
        self.reporter.say(describe(self.accelerator, self.settings.accumulate))

    def move(self, folder: str | os.PathLike) -> None:
        """Go on in another folder, with the data and the backbone that have been read."""
        self.files = RunFolder(folder)
        self.folder = self.files.path

    # ------------------------------------------------------------------ data and models

    @cached_property
    def splits(self) -> Splits:
        """The task, decoded once.

        Raises:
            ValueError: if it cannot be used, or is no longer what the run began with.
        """
        splits = read_splits(self.settings)
        check_data(self.folder, self.files.data(), splits.to_dict())
        return splits

    def take_splits(self, splits: Splits) -> None:
        """Use the data that another run with the same settings has read.

        Raises:
            ValueError: if they are not what this run began with.
        """
        check_data(self.folder, self.files.data(), splits.to_dict())
        self.splits = splits

    @cached_property
    def normalize(self) -> Prepare | None:
        """The one normalisation of the run's images; None where its samples need none."""
        return self.splits.preprocessing.normalizer

    @cached_property
    def _preprocess_training(self) -> Prepare | None:
        """What training batches go through: augmentation, where the run asks for it, and the same normalisation."""
        if not self.settings.augment:
            return self.normalize
        from peft_noah.data.augmentation import Augmented

        return Augmented(self.normalize)

    def fresh_backbone(self) -> nn.Module:
        """The pretrained backbone with a new classifier, the same each time.

        Raises:
            ValueError: if it cannot be used, or is no longer what the run began with.
        """
        backbone = load_backbone(self.settings.backbone, self.splits, self.settings.seed)
        known = read_inputs(self.folder)[1]
        check_backbone(self.folder, known, fingerprint_backbone(backbone), self.settings.backbone)
        return backbone

    @cached_property
    def _backbone(self) -> tuple[nn.Module, torch.Tensor]:
        return self.fresh_backbone(), torch.get_rng_state()

    def frozen_backbone(self) -> nn.Module:
        """As `fresh_backbone`, for a model that leaves these weights as they are: all such models of this process share them,
        and they are read from the disk once."""
        backbone, state = self._backbone
        torch.set_rng_state(state)  # what is added to it starts as if it had just been read
        return copy.deepcopy(backbone, {id(weight): weight for weight in backbone.parameters()})

    def prepare(self) -> None:
        """Check everything a run needs before anything is written, then write settings.json and what was read.

        Raises:
            ValueError: on data or backbone that cannot be used, here or where another process is, or data that are not those the
                run began with.
        """
        with together(self.accelerator):
            self.splits  # noqa: B018 (it checks)
        if self._prepared:
            if not self._recorded:  # a run of an older version
                self._record(self.fresh_backbone())
            return
        with together(self.accelerator):
            self._preprocess_training  # noqa: B018 (it checks that what augments is installed)
            self._check_designs()
            supernet = self.fresh_supernet()
        self.on_main(self.files.path.mkdir, parents=True, exist_ok=True)
        self._record(supernet.base_model.model)
        self.on_main(self.files.write_settings, self.settings)
        self._prepared = True

    def _check_designs(self) -> None:
        """Refuse a design of the user's that the backbone cannot carry."""
        baselines = [Design.from_dict(entry) for entry in self.settings.baselines if not isinstance(entry, str)]
        for design in (*baselines, *(self.settings.raced if self.settings.designs else ())):
            try:
                model = add_design(self.frozen_backbone(), design, self.settings.recipe)
                for head in classifiers(model) if design.head_start else ():
                    check_head(head)
            except ValueError as error:
                raise ValueError(f"design {design.name!r} does not fit this backbone: {error}") from error

    def _record(self, backbone: nn.Module) -> None:
        """Keep what was read, for later stages to compare."""
        self.on_main(write_inputs, self.folder, self.splits.to_dict(), fingerprint_backbone(backbone))
        self._recorded = True

    def fresh_supernet(self) -> PeftModel:
        """The supernet of the run's search space, untrained."""
        backbone = self.fresh_backbone()
        blocks = len(find_backbone(backbone.config.model_type).block_names(backbone))
        return add_supernet(backbone, self.settings.space(blocks), self.settings.recipe)

    # ------------------------------------------------------------------ training and accuracy

    def train(
        self,
        name: str,
        model: nn.Module,
        images: LabelledSplit,
        settings: TrainingSettings,
        sampler: Callable[[int], Architecture] | None = None,
        until: int | None = None,
        show: AbstractContextManager[Callable[[int, int, str], None]] | None = None,
    ) -> TrainingLog:
        """Train, going on from a checkpoint if there is one; `forget` removes it once the result has been saved.

        Args:
            name: what logs, progress and checkpoints call it.
            model: what is trained.
            images: what it is trained on.
            settings: how.
            sampler: of architectures, for a supernet.
            until: the step after which this call ends; None: the last.
            show: is open meanwhile, and gives ``update(step, steps, note)``; None: `Reporter.stage`.
        """
        checkpoint = self._checkpoint(name)
        log = StepLog(self._log_file(name, checkpoint), name, settings, self.accelerator)
        with show or self.reporter.stage(name, "steps") as update, Interruption() as interruption:

            def on_step(step: int, total: int, loss: float) -> None:
                log(step, total, loss)
                update(step, total, f"loss {loss:.3f}")

            done = train(
                model,
                images,
                self._preprocess_training,
                settings,
                self.accelerator,
                sampler=sampler,
                on_step=on_step,
                checkpoint=checkpoint,
                interruption=interruption,
                until=until,
            )
        self.accelerator.free_memory()
        return done

    def _log_file(self, name: str, checkpoint: CheckpointFolder) -> Path:
        """Where the steps of a training are logged, once trackers have begun; nothing it writes may go through a link."""
        log_file = self.folder / LOGS / f"{slug(name)}.jsonl"
        for path in (log_file, log_file.parent, checkpoint.folder, checkpoint.folder.parent, self.folder / TRACKING):
            refuse_link(path)
        if self.accelerator.log_with and not self.accelerator.trackers:
            start_trackers(self.accelerator, asdict(self.settings))
        return log_file

    def _checkpoint(self, name: str) -> CheckpointFolder:
        return CheckpointFolder(self.folder / CHECKPOINTS / slug(name), every_seconds=self._checkpoint_seconds)

    def has_begun(self, name: str) -> bool:
        """Whether a training has left a checkpoint to go on from."""
        return self._checkpoint(name).exists()

    def forget(self, *names: str) -> None:
        """Remove the checkpoints of trainings whose results have been saved."""
        for name in names:
            self.on_main(self._checkpoint(name).remove)

    def accuracy(self, model: nn.Module, images: LabelledSplit) -> float:
        """Share of images that a model classifies right."""
        return evaluate(model, images, self.normalize, self.accelerator)

    # ------------------------------------------------------------------ files and other jobs

    def save_adapter(self, model: PeftModel, name: str, design: Design | None = None) -> None:
        """Write an adapter folder whole, with the user's design that it is of: a folder of that name is always a complete
        one."""

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            self.splits.preprocessing.processor.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)
            if design is not None:
                design.save(folder / DESIGN)

        self.on_main(self.files.write_adapter, name, write)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let each process of a launcher train and score by itself for a while, as if it were the only one.

        Each writes what it makes, so no two may make the same.
        """
        group = self.accelerator
        with alone(self.settings.mixed_precision, self.settings.compile_mode) as self.accelerator:
            try:
                yield
            finally:
                self.accelerator = group

    def on_main(self, write: Callable, *args, **kwargs) -> None:
        """Let the main process write, and the others wait for it; what it raises ends them all."""
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                write(*args, **kwargs)

    @contextmanager
    def alone(self, work: str) -> Iterator[None]:
        """Keep other jobs in the folder off some work; the processes of one job do so together, through the main one.

        Args:
            work: name of a method, or `folder.SHARED`: the stages that several methods need.

        Raises:
            ValueError: as `prepare`; nothing is written then.
            Busy: another job is at it; on all processes.
        """
        self.prepare()
        lock = slug(work)
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


def read_splits(settings: RunSettings, preprocessing: Preprocessing | Tokenization | None = None) -> Splits:
    """The task of a run, read once, as its backbone wants it or as is given."""
    check_task(settings.backbone, settings.task)
    return read_data(settings, preprocessing or read_preprocessing(settings, settings.backbone))
