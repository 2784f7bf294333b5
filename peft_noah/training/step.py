"""One step of a training: a process's passes over its share of a batch, and the optimiser's update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import AdamW

from peft_noah.architecture import Architecture
from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.training.averaging import WeightAverage
from peft_noah.training.batches import Shares
from peft_noah.training.processes import is_compiling
from peft_noah.training.settings import TrainingSettings


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite, and stopped before it could reach the weights."""


class TrainStep:
    """The steps of a training, one at a time: `sample`, `gradients`, and once the processes know their loss, `update`.

    Args:
        model: a classifier; what requires gradients in it is trained.
        images: what it is trained on.
        preprocess: as of `train`.
        settings: epochs, rates and the rest.
        accelerator: devices, processes, precision and compiler.
        sampler: the architecture of each step, for a supernet.

    Attributes:
        model: as Accelerate prepared it.
        shares: which images this process computes at each step.
        optimizer: as Accelerate prepared it.
        average: of the weights, where the settings ask for one.

    Raises:
        ValueError: if nothing in the model is trainable, or what is is float16.
    """

    def __init__(
        self,
        model: nn.Module,
        images: LabelledSplit,
        preprocess: Prepare | None,
        settings: TrainingSettings,
        accelerator: Accelerator,
        sampler: Callable[[int], Architecture] | None,
    ) -> None:
        weights = _trainable(model)
        self.inputs = partial(images.inputs, prepare=preprocess)
        self.settings, self.accelerator, self.sampler = settings, accelerator, sampler
        self.shares = Shares(
            len(images),
            settings.batch_size,
            settings.seed,
            accumulate=settings.accumulate,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        # one kernel for all weights where they are small and many
        fused = accelerator.device.type == "cuda"
        optimizer = AdamW(weights, lr=1.0, weight_decay=settings.weight_decay, fused=fused)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = WeightAverage(model, settings.average) if settings.average else None
        # a compiler would compile the model anew for an epoch's last batch: fill it up to the largest
        sizes = (count for step in range(self.shares.steps) for count in self.shares.counts(step))
        self._fill = max(sizes) if is_compiling(accelerator) else 0
        self._supernet = model
        self._broken_images = False

    def sample(self, step: int) -> None:
        """Activate the subnet of a step: the same in all processes, or each its own; nothing without a sampler."""
        if self.sampler is None:
            return
        if self.settings.sampling == "per-process":
            step = step * self.accelerator.num_processes + self.accelerator.process_index
        self._supernet.set_architecture(self.sampler(step))

    def gradients(self, batches: Iterator[dict], position: int) -> float:
        """Leave the global batch's mean gradient in the weights; returns the sum of the losses of this process's images.

        Processes average their gradients, so a micro-batch's mean loss weighs ``count * processes / size``. One with a
        count of 0 only takes part in the exchange of gradients.

        Args:
            batches: this process's micro-batches.
            position: of the global batch in its epoch.
        """
        loss_sum, counts, size = 0.0, self.shares.counts(position), self.shares.batch(position)
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
        if size < self._fill:
            batch = {key: value[torch.arange(self._fill, device=value.device) % size] for key, value in batch.items()}
        return self.model(**self.inputs(batch)).logits[:size]

    def update(self, step: int, loss: float) -> None:
        """Clip the gradients, let the optimiser take its step, counted from 0, and clear them.

        Raises:
            NonFiniteLossError: instead, where the loss is none.
        """
        if not math.isfinite(loss):
            raise NonFiniteLossError(self._describe_non_finite(loss, step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(step, self.shares.steps)
        if self.settings.max_grad_norm is not None:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            self.accelerator.clip_grad_norm_(weights, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()

    def _describe_non_finite(self, loss: float, step: int) -> str:
        if self._broken_images:
            cause = "The images of this batch hold NaN or infinite values: check mean, std and the image files."
        else:
            cause = "Lower the learning rate, clip gradients with max_grad_norm, or train in float32."
        where = "" if self.sampler is None else f" with {self._supernet.get_architecture()!r}"
        return f"the loss is {loss} at step {step}{where}; nothing was saved from this step. {cause}"


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("nothing in the model requires gradients: attach an adapter, or unfreeze the classifier.")
    if half := sum(parameter.dtype == torch.float16 for parameter in trainable):
        raise ValueError(
            f"{half} of the weights that train are float16, in which updates are lost. Load the model with dtype=torch.float32, "
            "and train with an accelerator of mixed_precision='fp16' or 'bf16' to save time."
        )
    return trainable
