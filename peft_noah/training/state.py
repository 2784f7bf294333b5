"""Everything that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from peft_noah.data.labelled import LabelledSplit
from peft_noah.training.averaging import WeightAverage
from peft_noah.training.checkpoint import Checkpoint, CheckpointFolder
from peft_noah.training.interruption import Interrupted, Interruption, interrupted
from peft_noah.training.memory import peak_memory, start_measuring
from peft_noah.training.processes import is_compiling, together

logger = logging.getLogger(__name__)

#: what AdamW keeps for each weight
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """How far a training is.

    Args:
        step: optimiser steps done.
        losses: mean loss of each finished epoch.
        loss_sum: sum of the losses of the unfinished epoch's images.
        seconds: spent so far, over all interruptions.
        peak_memory: bytes, the most of any process so far.
        ended: whether the call that left it here was to end here, and was not interrupted.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    seconds: float = 0.0
    peak_memory: int = 0
    ended: bool = False

    def add_step(self, loss_sum: float, last: int) -> None:
        """Count a step with the sum of its images' losses; ``last`` is the step at which this call ends."""
        self.step += 1
        self.loss_sum += loss_sum
        self.ended = self.step == last

    def end_epoch(self, size: int) -> None:
        """Turn the sum of an epoch's losses into their mean over its ``size`` images."""
        self.losses.append(self.loss_sum / size)
        self.loss_sum = 0.0


class TrainingState:
    """Saves and restores a training: weights, AdamW's moments, progress, and the random generators of each process.

    The order of the images, the learning rate and the architectures are functions of the step, and need no state. The
    frozen backbone is not saved.

    Args:
        model: not wrapped.
        optimizer: as Accelerate prepared it.
        accelerator: of the training.
        identity: plain data that says what is being trained.
        folder: where checkpoints are; None: nothing is saved.
        interruption: None: nothing is noted.
        average: the averaged weights, where there are some; saved too.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        accelerator: Accelerator,
        identity: Mapping[str, object],
        folder: CheckpointFolder | None = None,
        interruption: Interruption | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.optimizer, self.accelerator, self.folder = optimizer, accelerator, folder
        self.interruption, self.average = interruption, average
        shapes = [(name, tuple(weight.shape), str(weight.dtype)) for name, weight in self.weights.items()]
        self.identity = {**identity, "weights": _digest(shapes)}
        self._resumed: Checkpoint | None = None
        self._since = time.perf_counter()
        if interruption is not None:  # what the first step compiles can be compiled again
            interruption.at_once = is_compiling(accelerator)
        start_measuring(accelerator.device)

    def wishes(self, step: int) -> tuple[bool, bool]:
        """Whether this process wants to stop after ``step`` steps, and to save: the main one's clock decides.

        The processes add their wishes up, so that all do the same. Asked when the passes of a step are done, and with the
        first one all has been compiled: from here on signals are noted.
        """
        due = self.folder is not None and self.accelerator.is_main_process and self.folder.due(step)
        if self.interruption is None:
            return False, due
        self.interruption.at_once = False
        return self.interruption.signal != 0, due

    def after_step(self, progress: Progress, stop: float, due: float) -> None:
        """Do what the processes agreed on; the last step of a call is saved too.

        Raises:
            CheckpointError: as `CheckpointFolder.save`.
            Interrupted: if they stop.
        """
        saves = self.folder is not None and (due or stop or progress.ended)
        if saves:
            self._measure(progress)
            self.save(self.folder, progress)
        if stop:
            if self.interruption is not None:
                self.interruption.told = True
            done = f"training stopped after step {progress.step:,}"
            number = (self.interruption and self.interruption.signal) or signal.SIGTERM
            if saves:
                raise interrupted(f"{done}, which is saved in {self.folder.folder}", number)
            raise Interrupted(f"{done} ({signal.Signals(number).name}); no checkpoint folder was given.", number)

    def finish(self, progress: Progress) -> None:
        """Leave the averaged weights in the model, where there are some, and bring time and memory up to date."""
        self._measure(progress)
        if self.average is not None:
            self.average.swap()

    def _measure(self, progress: Progress) -> None:
        now = time.perf_counter()
        progress.seconds += now - self._since
        progress.peak_memory = max(progress.peak_memory, peak_memory(self.accelerator.device))
        self._since = now

    def save(self, folder: CheckpointFolder, progress: Progress) -> None:
        """Write a checkpoint on the main process; all processes must call this, and wait for it.

        Raises:
            CheckpointError: as `CheckpointFolder.save`.
            ValueError: in the other processes, where that was raised in the main one.
        """
        generators = {f"random.{name}": self.accelerator.gather(state[None]) for name, state in self._generators()}
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                folder.save(self._checkpoint(progress, generators))

    def _checkpoint(self, progress: Progress, generators: Mapping[str, torch.Tensor]) -> Checkpoint:
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.weights.items()}
        if self.average is not None:
            tensors.update(zip(self._average_names(), self.average.averages, strict=True))
        for weight, moments in self._moments().items():
            tensors.update({f"{key}.{weight}": value for key, value in moments.items()})
        tensors.update({name: states.cpu() for name, states in generators.items()})
        scaler = self.accelerator.scaler
        state = {
            "progress": vars(progress),
            "scaler": None if scaler is None else scaler.state_dict(),
            "processes": self.accelerator.num_processes,
        }
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        return Checkpoint(progress.step, self.identity, state, contiguous)

    def load(self) -> Progress:
        """Take up the newest checkpoint, if there is one; `restore_generators` does the rest.

        Raises:
            ValueError: it belongs to another training, or the processes do not see the same folder.
        """
        if self.folder is None:
            return Progress()
        checkpoint = self._resumed = self.folder.load(self.identity)
        self._check_agreement(self.folder, checkpoint)
        if checkpoint is None:
            return Progress()
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(checkpoint.tensors[f"weight.{name}"])
            if self.average is not None:
                for name, average in zip(self._average_names(), self.average.averages, strict=True):
                    average.copy_(checkpoint.tensors[name])
                self.average.steps = checkpoint.step
        self._load_moments(checkpoint.tensors)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        progress = Progress(**checkpoint.state["progress"])
        if not progress.ended:  # a race's heats go on where the one before them has ended: there is nothing to say
            logger.info("going on from step %s of %s", f"{checkpoint.step:,}", self.folder.folder)
        return progress

    def restore_generators(self) -> None:
        """Set the random generators as the checkpoint has them, once."""
        checkpoint, self._resumed = self._resumed, None
        if checkpoint is None:
            return
        if checkpoint.state["processes"] != self.accelerator.num_processes:
            logger.warning("the number of processes has changed: dropout will draw otherwise from here on")
            return
        device, process = self.accelerator.device, self.accelerator.process_index
        # clones: set_rng_state reads a row of a matrix from the matrix's start
        torch.set_rng_state(checkpoint.tensors["random.cpu"][process].clone())
        if device.type != "cpu":
            state = checkpoint.tensors[f"random.{device.type}"][process].clone()
            torch.get_device_module(device).set_rng_state(state, device)

    def _check_agreement(self, folder: CheckpointFolder, checkpoint: Checkpoint | None) -> None:
        mine = torch.tensor([-1 if checkpoint is None else checkpoint.step], device=self.accelerator.device)
        if not self.accelerator.gather(mine).eq(mine).all():
            raise ValueError(
                f"the processes find different checkpoints in {folder.folder}: all machines must see the same run folder."
            )

    def _average_names(self) -> list[str]:
        return [f"average.{name}" for name in self.weights]

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """AdamW's tensors by name of the weight; a weight that never had a gradient has none."""
        state = self.optimizer.state
        return {name: state[weight] for name, weight in self.weights.items() if weight in state}

    def _load_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        packed = self.optimizer.state_dict()
        names = {weight: name for name, weight in self.weights.items()}
        ordered = [names[weight] for group in self.optimizer.param_groups for weight in group["params"]]
        packed["state"] = {
            index: {key: tensors[f"{key}.{name}"] for key in MOMENTS}
            for index, name in enumerate(ordered)
            if f"step.{name}" in tensors
        }
        self.optimizer.load_state_dict(packed)

    def _generators(self) -> list[tuple[str, torch.Tensor]]:
        """The state of each random generator that a step may draw from, by device, on this process's device."""
        device, states = self.accelerator.device, [("cpu", torch.get_rng_state())]
        if device.type != "cpu":
            states.append((device.type, torch.get_device_module(device).get_rng_state(device)))
        return [(name, state.to(device)) for name, state in states]


def identity_of(images: LabelledSplit, settings: Mapping[str, object], sampler: Callable | None) -> dict[str, object]:
    """What makes a training the one it is, beside its weights: settings, images, and the stream of architectures."""
    stream = None if sampler is None else _digest([sampler(step).to_dict() for step in range(4)])
    return {**settings, "images": len(images), "images_sha256": images.fingerprint, "architectures": stream}


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
