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

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from peft_noah.architecture import Architecture
from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.training.checkpoint import CheckpointFolder
from peft_noah.training.compiling import fast_or_compiled
from peft_noah.training.interruption import Interruption
from peft_noah.training.memory import keep_freed_memory
from peft_noah.training.processes import total
from peft_noah.training.settings import TrainingSettings
from peft_noah.training.state import TrainingState, identity_of
from peft_noah.training.step import TrainStep


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
    step = TrainStep(model, images, preprocess, settings, accelerator, sampler)
    identity = {} if checkpoint is None else identity_of(images, settings.to_dict(), sampler)
    state = TrainingState(model, step.optimizer, accelerator, identity, checkpoint, interruption, step.average)

    set_seed(settings.seed, device_specific=True)
    progress, shares = state.load(), step.shares
    steps = settings.epochs * shares.steps
    last = steps if until is None else min(until, steps)
    if progress.step > last:
        raise ValueError(
            f"the checkpoint is of step {progress.step:,}, behind step {last:,}, where this call should end."
        )
    step.model.train()
    resident = images.on(accelerator.device)
    with (
        keep_freed_memory(accelerator.device),
        fast_or_compiled(
            model, accelerator, sampler is not None, lambda: step.inputs(resident.__getitems__([0, len(images) - 1]))
        ),
    ):
        for epoch in range(len(progress.losses), settings.epochs):
            start = progress.step - epoch * shares.steps
            batches = iter(
                DataLoader(resident, batch_sampler=shares.start_at(epoch, start), collate_fn=images.collate)
            )
            state.restore_generators()  # not before the loader is there: it draws a seed from torch's generator
            for position in range(start, min(shares.steps, start + last - progress.step)):
                step.sample(progress.step)
                mine = step.gradients(batches, position)
                loss, stop, due = total(accelerator, mine, *state.wishes(progress.step + 1))
                step.update(progress.step, loss)
                progress.add_step(loss, last)
                if on_step is not None:
                    on_step(progress.step, steps, loss / shares.batch(position))
                state.after_step(progress, stop, due)
            if progress.step < (epoch + 1) * shares.steps:
                break
            progress.end_epoch(len(images))
    state.finish(progress)
    return TrainingLog(tuple(progress.losses), progress.step, progress.seconds, progress.peak_memory)
