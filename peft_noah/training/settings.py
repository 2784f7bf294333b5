"""How a model is trained: lengths, rates and seeds, and the paper's values of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from peft_noah.jsonfile import MAX_COUNT, check_int, check_number
from peft_noah.tuner.recipes import RECIPES

#: which subnets the processes of a step train: all the same one, or each its own
SAMPLING = ("shared", "per-process")

#: how the learning rate goes on after the warm-up
SCHEDULES = ("cosine", "constant")

#: NumPy takes seeds below 2^32, and a process adds its number
MAX_SEED = 2**31 - 1


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
