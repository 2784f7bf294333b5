"""One visible Accelerate loop for supernets, subnets and baselines.

    for epoch:
        for global batch:
            architecture = sampler(step)              # supernet only
            for micro-batch of this process:
                loss = cross_entropy(model(micro-batch))
                backward
            clip, AdamW, cosine

Every step updates every trainable weight: where a slice was not sampled its gradient is zero, and AdamW's weight decay
and momentum still act on it, on one process and on many alike.

The global batch is fixed: N processes or micro-batches share it, and each loss is weighted so that their gradients add
up to those of the whole batch. Results differ from one process's by the order of sums alone, and by dropout, which each
process draws for itself.

The seed fixes the order of the images, augmentation and dropout (torch's generators), the sampled architectures and so
the weights: with one process and as many threads, two trainings on a machine give the same bytes, interrupted or not. On
a GPU that is out of our hands: some of its kernels add in an order that varies (attention's backward, for one), and other cards, drivers
and versions of torch choose other kernels; ``torch.use_deterministic_algorithms(True)`` asks for those that do not vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from peft_noah.architecture import Architecture
from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.fast import FastForward, fast_forward
from peft_noah.jsonfile import MAX_COUNT, check_int, check_number
from peft_noah.training.averaging import WeightAverage
from peft_noah.training.batches import Shares
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.interruption import Interruption
from peft_noah.training.memory import keep_freed_memory
from peft_noah.training.processes import is_compiling, total
from peft_noah.training.state import TrainingState, identity_of
from peft_noah.tuner.config import RECIPES

#: which subnets the processes of a step train: all the same one, or each its own
SAMPLING = ("shared", "per-process")

#: how the learning rate goes on after the warm-up
SCHEDULES = ("cosine", "constant")

#: from a batch to what the model is called with
Inputs = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]

#: NumPy takes seeds below 2^32, and a process adds its number
MAX_SEED = 2**31 - 1


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite, and stopped before it could reach the weights."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the defaults are the paper's for a subnet or a baseline on VTAB-1k.

    Args:
        epochs: passes over the training images.
        batch_size: images per optimiser step, over all processes together.
        learning_rate: peak of the schedule; no unit.
        weight_decay: AdamW's, on every trainable weight; no unit.
        warmup_epochs: linear rise to the peak; None: 10, but no more than a tenth of ``epochs``.
        warmup_learning_rate: where the rise starts; no unit.
        min_learning_rate: where the cosine ends; no unit.
        schedule: ``"cosine"``: half a cosine after the warm-up; ``"constant"``: the peak from there on, for trainings whose
            length is not known when they start.
        average: of an exponential moving average of the weights, how much of the old average a step keeps; no unit. The
            model has the averaged weights when the training ends. 0: the weights of the last step.
        label_smoothing: share of the target spread over all classes.
        max_grad_norm: global gradient norm to clip to; None: no clipping, as in the paper.
        seed: order of the images, dropout, and the sampled architectures.
        accumulate: micro-batches that a process splits its share of a batch into, to save memory; they share the subnet.
        sampling: ``"shared"``: all processes train one subnet per step; ``"per-process"``: each its own, so that a step
            averages gradients over several subnets. No difference on one process.

    Raises:
        ValueError: on a value out of range.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup_epochs: float | None = None
    warmup_learning_rate: float = 0.0
    min_learning_rate: float = 0.0
    schedule: str = "cosine"
    average: float = 0.0
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    seed: int = 0
    accumulate: int = 1
    sampling: str = "shared"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            check_int(getattr(self, name), name, 1, MAX_COUNT)
        check_int(self.seed, "seed", 0, MAX_SEED)
        for name in ("weight_decay", "warmup_learning_rate", "min_learning_rate"):
            check_number(getattr(self, name), name, 0)
        check_number(self.learning_rate, "learning_rate", above=0)
        for name in ("label_smoothing", "average"):
            check_number(getattr(self, name), name, 0, below=1)
        if self.warmup_epochs is not None:
            check_number(self.warmup_epochs, "warmup_epochs", 0)
        if self.max_grad_norm is not None:
            check_number(self.max_grad_norm, "max_grad_norm", above=0)
        for name, allowed in (("sampling", SAMPLING), ("schedule", SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")

    @classmethod
    def named(cls, recipe: str, stage: str, protocol: str = "vtab", **changes) -> TrainingSettings:
        """The settings of a recipe for a stage.

        Args:
            recipe: ``"paper"`` or ``"released"``.
            stage: ``"supernet"``; ``"subnet"`` for retraining and baselines; ``"full"`` for full fine-tuning, for which the
                paper states no rate: 1e-4.
            protocol: ``"vtab"`` or ``"few_shot"`` (also for domain generalisation).
            **changes: fields to set otherwise.

        Raises:
            ValueError: on another recipe, stage or protocol.
        """
        for what, value, allowed in (
            ("recipe", recipe, RECIPES),
            ("stage", stage, ("supernet", "subnet", "full")),
            ("protocol", protocol, ("vtab", "few_shot")),
        ):
            if value not in allowed:
                raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}.")
        few_shot = protocol == "few_shot"
        peak = {"supernet": 5e-4, "full": 1e-4, "subnet": 5e-3 if few_shot else 1e-3}[stage]
        epochs = 100 if stage != "supernet" else 300 if few_shot and recipe == "released" else 500
        settings = cls(epochs=epochs, learning_rate=peak)
        if recipe == "released":
            settings = replace(settings, weight_decay=1e-4, warmup_learning_rate=1e-6, min_learning_rate=1e-5)
        return replace(settings, **changes)

    def rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0: linear warm-up, then what ``schedule`` says."""
        total = self.epochs * steps_per_epoch
        epochs = min(10.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
        warmup = round(epochs * steps_per_epoch)
        if step < warmup:
            return self.warmup_learning_rate + (self.learning_rate - self.warmup_learning_rate) * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - warmup) / max(1, total - warmup)
        span = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def to_dict(self) -> dict[str, object]:
        """Plain data for a results file."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingLog:
    """What a training run reports.

    Args:
        losses: mean loss per epoch.
        steps: optimiser steps.
        seconds: over all interruptions.
        peak_memory: bytes, as `peft_noah.training.memory.peak_memory` has it.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    peak_memory: int = 0


def train(
    model: nn.Module,
    images: LabelledSplit,
    preprocess: Prepare | None,
    settings: TrainingSettings,
    accelerator: Accelerator,
    *,
    sampler: Callable[[int], Architecture] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    checkpoint: CheckpointFolder | None = None,
    interruption: Interruption | None = None,
    until: int | None = None,
) -> TrainingLog:
    """Train whatever in ``model`` requires gradients, on cross-entropy.

    Args:
        model: a classifier with ``.logits`` (B, classes), called with what `images.inputs` gives.
        images: a split of labelled samples, such as an `ImageSplit`.
        preprocess: uint8 pixels to the backbone's input; it may augment them first. None where samples need no such step.
        settings: epochs, rates and the rest.
        accelerator: devices, processes, precision and compiler; a compiled supernet keeps one shape, see
            `NoahModel.fixed_shapes`.
        sampler: the architecture of each step, for a supernet.
        on_step: called with (step, steps in all, mean loss of the global batch) after each step.
        checkpoint: where to go on from, if something is there, and where to save; the last step is saved too. The caller
            removes it with ``remove()`` once the model has been saved.
        interruption: asked after each step whether to save and stop.
        until: the step after which this call ends, counted from 1; a later call with the same checkpoint goes on. None: all
            of ``settings.epochs``.

    Raises:
        ValueError: if nothing in the model is trainable, or what is is float16, the checkpoint belongs to another training or is behind ``until``,
            or a supernet to be compiled cannot keep one shape.
        NonFiniteLossError: on a NaN or infinite loss; names step and architecture.
        CheckpointError: if a checkpoint cannot be written.
        Interrupted: if a signal came; says how to go on.
    """
    shares = Shares(
        len(images),
        settings.batch_size,
        settings.seed,
        accumulate=settings.accumulate,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    work = _prepare(model, lambda batch: images.inputs(batch, preprocess), settings, accelerator, shares)
    identity = {} if checkpoint is None else identity_of(images, settings.to_dict(), sampler)
    average = WeightAverage(model, settings.average) if settings.average else None
    state = TrainingState(model, work.optimizer, accelerator, identity, checkpoint, interruption, average)

    set_seed(settings.seed, device_specific=True)
    progress = state.load()
    work.model.train()
    steps = settings.epochs * shares.steps
    last = steps if until is None else min(until, steps)
    if progress.step > last:
        raise ValueError(
            f"the checkpoint is of step {progress.step:,}, behind step {last:,}, where this call should end."
        )
    resident = images.on(accelerator.device)
    compiled = is_compiling(accelerator)
    with (
        keep_freed_memory(accelerator.device),
        fast_forward(model) as fast,
        _compilable(model, compiled, elastic=sampler is not None),
    ):
        if compiled and fast.comparison is not None:
            _compare(fast, model, work.inputs(resident.__getitems__([0, len(images) - 1])), sampler)
        for epoch in range(len(progress.losses), settings.epochs):
            start = progress.step - epoch * shares.steps
            batches = iter(
                DataLoader(resident, batch_sampler=shares.start_at(epoch, start), collate_fn=images.collate)
            )
            state.restore_generators()  # not before the loader is there: it draws a seed from torch's generator
            for position in range(start, min(shares.steps, start + last - progress.step)):
                if sampler is not None:
                    model.set_architecture(sampler(_stream(settings.sampling, progress.step, accelerator)))
                mine = work.gradients(batches, shares.counts(position), shares.batch(position))
                loss, stop, due = total(accelerator, mine, *state.wishes(progress.step + 1))
                if not math.isfinite(loss):
                    raise NonFiniteLossError(work.describe_non_finite(loss, progress.step, model if sampler else None))
                work.update(settings.rate_at(progress.step, shares.steps))
                if average is not None:
                    average.update()
                progress.step += 1
                progress.loss_sum += loss
                if on_step is not None:
                    on_step(progress.step, steps, loss / shares.batch(position))
                progress.ended = progress.step == last
                state.after_step(progress, stop, due)
            if progress.step < (epoch + 1) * shares.steps:
                break
            progress.losses.append(progress.loss_sum / len(images))
            progress.loss_sum = 0.0
    state.measure(progress)
    if average is not None:
        average.swap()
    return TrainingLog(tuple(progress.losses), progress.step, progress.seconds, progress.peak_memory)


def _prepare(
    model: nn.Module,
    inputs: Inputs,
    settings: TrainingSettings,
    accelerator: Accelerator,
    shares: Shares,
) -> _Work:
    """The passes and steps of a training, with its optimizer, on the accelerator's processes and devices.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("nothing in the model requires gradients: attach an adapter, or unfreeze the classifier.")
    if half := sum(parameter.dtype == torch.float16 for parameter in trainable):
        raise ValueError(
            f"{half} of the weights that train are float16, in which updates are lost. Load the model with dtype=torch.float32, "
            "and train with an accelerator of mixed_precision='fp16' or 'bf16' to save time."
        )
    # one kernel for all weights where they are small and many
    fused = accelerator.device.type == "cuda"
    optimizer = AdamW(trainable, lr=1.0, weight_decay=settings.weight_decay, fused=fused)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    fill = max(map(max, map(shares.counts, range(shares.steps)))) if is_compiling(accelerator) else 0
    return _Work(prepared, inputs, settings, accelerator, optimizer, fill)


@contextmanager
def _compilable(model: nn.Module, compiled: bool, elastic: bool) -> Iterator[None]:
    """Let a compiler see a supernet of one shape; what it made, and the memory of its graphs, goes in the end."""
    if not compiled:
        yield
        return
    try:
        with model.fixed_shapes() if elastic else nullcontext():
            yield
    finally:
        torch.compiler.reset()


def _compare(
    fast: FastForward, model: nn.Module, inputs: Mapping[str, torch.Tensor], sampler: Callable | None
) -> None:
    """Call what is about to be compiled, where parts of it are not built in: a compiler cannot compare.

    Raises:
        ValueError: if a supernet's subnets do not keep their outputs in one shape.
    """
    fast.compare(**inputs)
    if sampler is None:
        return
    stored = model.get_architecture()
    nothing = {row: [0] * stored.num_blocks for row in stored}
    for architecture in (nothing, model.get_search_space().smallest(), stored):
        model.set_architecture(architecture)
        fast.compare(**inputs)
    if fast.reason is not None:
        raise ValueError(
            f"this supernet cannot be compiled: {fast.reason}. Train without compiling, or let zeros behind a module's "
            "active slice change nothing."
        )


def _stream(sampling: str, step: int, accelerator: Accelerator) -> int:
    """Place in the stream of architectures: one per step, or one per step and process."""
    if sampling == "shared":
        return step
    return step * accelerator.num_processes + accelerator.process_index


class _Work:
    """Forward and backward passes of one process, and the optimiser's step.

    Args:
        inputs: from a batch to what the model is called with.
        fill: images that each forward pass gets, filled up with some of its own whose outputs count for nothing; 0: as they
            come. A compiler would compile the model anew for the last batch of an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        settings: TrainingSettings,
        accelerator: Accelerator,
        optimizer: Optimizer,
        fill: int,
    ) -> None:
        self.model, self.inputs, self.settings, self.accelerator = model, inputs, settings, accelerator
        self.optimizer, self.fill = optimizer, fill
        self._broken_images = False

    def update(self, rate: float) -> None:
        """Clip the gradients, take a step at a learning rate, and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.settings.max_grad_norm is not None:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            self.accelerator.clip_grad_norm_(weights, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self, batches: Iterator[dict], counts: list[int], size: int) -> float:
        """Leave the global batch's mean gradient in the weights; returns the sum of the losses of this process's images.

        Args:
            batches: this process's micro-batches.
            counts: how many images of each count; 0: the batch only takes part in the exchange of gradients.
            size: images of the global batch. Processes average their gradients, so a micro-batch's mean loss weighs
                ``count * processes / size``.
        """
        loss_sum = 0.0
        for index, count in enumerate(counts):
            batch = send_to_device(next(batches), self.accelerator.device)
            exchange = index == len(counts) - 1
            with nullcontext() if exchange else self.accelerator.no_sync(self.model):
                logits = self._logits(batch)
                smoothing = self.settings.label_smoothing
                loss = F.cross_entropy(logits.float(), batch["labels"], label_smoothing=smoothing)
                self.accelerator.backward(loss * (count * self.accelerator.num_processes / size))
            value = loss.item()  # not before the backward pass is queued: this waits for the device
            if not math.isfinite(value):
                self._broken_images |= not all(torch.isfinite(value).all() for value in self.inputs(batch).values())
            loss_sum += value * count
        return loss_sum

    def _logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, classes) of a batch of B samples."""
        size = len(batch["labels"])
        if size < self.fill:
            batch = {key: value[torch.arange(self.fill, device=value.device) % size] for key, value in batch.items()}
        return self.model(**self.inputs(batch)).logits[:size]

    def describe_non_finite(self, value: float, step: int, model: nn.Module | None) -> str:
        """Why the loss of a step may be ``value``; ``model`` is a supernet."""
        if self._broken_images:
            cause = "The images of this batch hold NaN or infinite values: check mean, std and the image files."
        else:
            cause = "Lower the learning rate, clip gradients with max_grad_norm, or train in float32."
        where = "" if model is None else f" with {model.get_architecture()!r}"
        return f"the loss is {value} at step {step}{where}; nothing was saved from this step. {cause}"
