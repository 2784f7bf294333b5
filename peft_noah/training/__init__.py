"""One visible loop for supernets, subnets and baselines, and what surrounds it: processes, checkpoints, logs, accuracy."""

from __future__ import annotations

from peft_noah.training.evaluation import evaluate, token_loss
from peft_noah.training.loop import TrainingLog, train
from peft_noah.training.processes import make_accelerator
from peft_noah.training.sampling import ArchitectureSampler, SampleArchitectureCallback
from peft_noah.training.settings import TrainingSettings
from peft_noah.training.step import NonFiniteLossError

__all__ = [
    "ArchitectureSampler",
    "NonFiniteLossError",
    "SampleArchitectureCallback",
    "TrainingLog",
    "TrainingSettings",
    "evaluate",
    "make_accelerator",
    "token_loss",
    "train",
]
