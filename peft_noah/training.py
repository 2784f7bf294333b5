"""One visible Accelerate loop for supernets, subnets and baselines.

    for epoch:
        for batch:
            architecture = sampler(step)          # supernet only
            loss = cross_entropy(model(batch))
            backward, clip, AdamW, cosine

Every step updates every trainable weight: where a slice was not sampled its gradient is zero, and AdamW's weight decay
and momentum still act on it, on one process and on many alike.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler, DataLoader, Sampler
from transformers import TrainerCallback

from peft_noah.architecture import Architecture, SearchSpace
from peft_noah.images import ImageSplit
from peft_noah.preprocessing import Normalizer


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite, and stopped before it could reach the weights."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained; the defaults are the paper's for a subnet or a baseline on VTAB-1k.

    Args:
        epochs: passes over the training images.
        batch_size: images per optimiser step, over all processes together.
        learning_rate: peak of the cosine; no unit.
        weight_decay: AdamW's, on every trainable weight; no unit.
        warmup_epochs: linear rise to the peak; None: 10, but no more than a tenth of ``epochs``.
        warmup_learning_rate: where the rise starts; no unit.
        min_learning_rate: where the cosine ends; no unit.
        label_smoothing: share of the target spread over all classes.
        max_grad_norm: global gradient norm to clip to; None: no clipping, as in the paper.
        seed: order of the images, dropout, and the sampled architectures.

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
    label_smoothing: float = 0.0
    max_grad_norm: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}.")
        for name in ("weight_decay", "warmup_learning_rate", "min_learning_rate", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)!r}.")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate!r}.")
        if self.label_smoothing >= 1.0:
            raise ValueError(f"label_smoothing must be below 1, got {self.label_smoothing!r}.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0.0:
            raise ValueError(f"max_grad_norm must be above 0, or None for no clipping, got {self.max_grad_norm!r}.")

    @classmethod
    def named(cls, recipe: str, stage: str, protocol: str = "vtab", **changes) -> TrainingSettings:
        """The settings of a recipe for a stage.

        Args:
            recipe: ``"paper"`` or ``"released"``.
            stage: ``"supernet"``; ``"subnet"`` for retraining and baselines; ``"full"`` for full fine-tuning, for which the
                paper states no rate: 1e-4.
            protocol: ``"vtab"`` or ``"few_shot"`` (also for domain generalisation).
            **changes: fields to set otherwise.
        """
        few_shot = protocol == "few_shot"
        peak = {"supernet": 5e-4, "full": 1e-4, "subnet": 5e-3 if few_shot else 1e-3}[stage]
        epochs = 100 if stage != "supernet" else 300 if few_shot and recipe == "released" else 500
        settings = cls(epochs=epochs, learning_rate=peak)
        if recipe == "released":
            settings = replace(settings, weight_decay=1e-4, warmup_learning_rate=1e-6, min_learning_rate=1e-5)
        return replace(settings, **changes)

    def rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0: linear warm-up, then half a cosine."""
        total = self.epochs * steps_per_epoch
        epochs = min(10.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
        warmup = round(epochs * steps_per_epoch)
        if step < warmup:
            return self.warmup_learning_rate + (self.learning_rate - self.warmup_learning_rate) * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        span = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def to_dict(self) -> dict[str, object]:
        """Plain data for a results file."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingLog:
    """What a training run reports: mean loss per epoch, steps, seconds."""

    losses: tuple[float, ...]
    steps: int
    seconds: float


class ArchitectureSampler:
    """The subnet of a training step: a function of seed and step alone, so that resuming needs no state.

    Args:
        space: what to sample from, uniformly as in the paper: a depth per module, then a dim per block.
        seed: of the stream.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space, self.seed = space, seed

    def __call__(self, step: int) -> Architecture:
        """The architecture of optimiser step ``step``."""
        return self.space.sample(random.Random(f"noah:{self.seed}:{step}"))


class SampleArchitectureCallback(TrainerCallback):
    """For ``transformers.Trainer``: activates a random subnet at every optimiser step, the largest while evaluating.

    Args:
        seed: of the stream of architectures.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @staticmethod
    def _core(model: nn.Module) -> nn.Module:
        return model.module if hasattr(model, "module") else model

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Sample before the forward pass; all micro-batches of a step share the subnet."""
        core = self._core(model)
        core.set_architecture(ArchitectureSampler(core.get_search_space(), self.seed)(state.global_step))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Leave the largest subnet behind, so that evaluation and saving meet one that is always the same."""
        core = self._core(model)
        core.set_architecture(core.get_search_space().largest())


class EpochSampler(Sampler[int]):
    """A permutation of the images that depends on seed and epoch alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


def make_accelerator(mixed_precision: str = "no") -> Accelerator:
    """An Accelerator whose batch size counts over all processes, so that their number does not change the training."""
    return Accelerator(
        mixed_precision=mixed_precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=True),
    )


def train(
    model: nn.Module,
    images: ImageSplit,
    normalize: Normalizer,
    settings: TrainingSettings,
    accelerator: Accelerator,
    *,
    sampler: Callable[[int], Architecture] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingLog:
    """Train whatever in ``model`` requires gradients, on cross-entropy.

    Args:
        model: a classifier called as ``model(pixel_values=...)`` with ``.logits`` (B, classes).
        images: uint8 images and labels.
        normalize: uint8 pixels to the backbone's input.
        settings: epochs, rates and the rest.
        accelerator: devices, processes and precision.
        sampler: the architecture of each step, for a supernet.
        on_step: called with (step, steps in all, loss) after each step.

    Raises:
        ValueError: if nothing in the model is trainable.
        NonFiniteLossError: on a NaN or infinite loss; names step and architecture.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("nothing in the model requires gradients: attach an adapter, or unfreeze the classifier.")
    order = EpochSampler(len(images), settings.seed)
    batches = BatchSampler(order, settings.batch_size, drop_last=False)
    loader = DataLoader(images, batch_sampler=batches, collate_fn=images.collate)
    optimizer = AdamW(trainable, lr=1.0, weight_decay=settings.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: settings.rate_at(step, len(batches)))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    core = accelerator.unwrap_model(model)

    set_seed(settings.seed, device_specific=True)
    model.train()
    total, step, losses, started = settings.epochs * len(batches), 0, [], time.perf_counter()
    for epoch in range(settings.epochs):
        order.epoch = epoch
        sums, count = 0.0, 0
        for batch in loader:
            if sampler is not None:
                core.set_architecture(sampler(step))
            logits = model(pixel_values=normalize(batch["pixel_values"])).logits
            loss = F.cross_entropy(logits.float(), batch["labels"], label_smoothing=settings.label_smoothing)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(_describe_non_finite(value, step, core, sampler, batch, normalize))
            accelerator.backward(loss)
            if settings.max_grad_norm is not None:
                accelerator.clip_grad_norm_(trainable, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, sums, count = step + 1, sums + value * len(batch["labels"]), count + len(batch["labels"])
            if on_step is not None:
                on_step(step, total, value)
        losses.append(sums / count)
    return TrainingLog(tuple(losses), step, time.perf_counter() - started)


def _describe_non_finite(value: float, step: int, model: nn.Module, sampler, batch: dict, normalize) -> str:
    if not torch.isfinite(normalize(batch["pixel_values"])).all():
        cause = "The images of this batch hold NaN or infinite values: check mean, std and the image files."
    else:
        cause = "Lower the learning rate, clip gradients with max_grad_norm, or train in float32."
    where = f" with {model.get_architecture()!r}" if sampler is not None else ""
    return f"the loss is {value} at step {step}{where}; nothing was saved from this step. {cause}"
