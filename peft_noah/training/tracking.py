"""What a training writes down at every step: a line of JSON, and a value for each of Accelerate's trackers.

{"stage": "supernet", "step": 120, "loss": 1.482, "rate": 0.0005, "seconds": 31.4}
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from peft_noah.jsonfile import write_atomically
from peft_noah.training.settings import TrainingSettings


class StepLog:
    """Called as ``train(on_step=...)``: appends a line to a file, and logs to the accelerator's trackers.

    Only the main process writes. Each line is written in one piece. Where a training goes on from a checkpoint, the lines
    of later steps are cut first, so that the file is the one of an uninterrupted run, but for the seconds.

    Args:
        path: file of JSON lines; stages that follow each other may share one.
        stage: the name of this training in it.
        settings: of the training, for its learning rate.
        accelerator: of the training.
    """

    def __init__(
        self, path: str | os.PathLike[str], stage: str, settings: TrainingSettings, accelerator: Accelerator
    ) -> None:
        self.path, self.stage, self.settings, self.accelerator = Path(path), stage, settings, accelerator
        self._began, self._cut = time.perf_counter(), False

    def __call__(self, step: int, steps: int, loss: float) -> None:
        """Note an optimiser step, counted from 1, of ``steps`` in all, and its mean loss."""
        rate = self.settings.rate_at(step - 1, steps // self.settings.epochs)
        self.accelerator.log({f"{self.stage}/loss": loss, f"{self.stage}/rate": rate}, step=step)
        if not self.accelerator.is_main_process:
            return
        if not self._cut:
            self._began -= cut_log(self.path, self.stage, step)
            self._cut = True
        seconds = round(time.perf_counter() - self._began, 3)
        line = {"stage": self.stage, "step": step, "loss": loss, "rate": rate, "seconds": seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")


def cut_log(path: Path, stage: str, step: int) -> float:
    """Remove the lines of a stage from ``step`` on, and what a killed writer left; returns the stage's seconds so far."""
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        line = _parse(text)
        if line is None or not text.endswith("\n") or (line["stage"] == stage and line["step"] >= step):
            continue
        kept.append(text)
        if line["stage"] == stage:
            seconds = float(line["seconds"])
    write_atomically(path, "".join(kept))
    return seconds


def _parse(text: str) -> dict | None:
    """A line that is whole, else None."""
    try:
        line = json.loads(text)
        return {"stage": str(line["stage"]), "step": int(line["step"]), "seconds": float(line["seconds"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def check_tracker(name: str | None) -> None:
    """Whether Accelerate can log to a tracker.

    Raises:
        ValueError: it is unknown or not installed; Accelerate itself would go on without it.
    """
    known = [str(tracker) for tracker in LoggerType if tracker != LoggerType.ALL]
    if name is None:
        return
    if name not in known:
        raise ValueError(f"tracker {name!r} is not known (known: {', '.join(known)}).")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        how = "pip install 'peft-noah[tensorboard]'" if name == "tensorboard" else f"pip install {name}"
        raise ValueError(f"tracker {name!r} is not installed: {how}")


def start_trackers(accelerator: Accelerator, config: Mapping[str, object]) -> None:
    """Open the trackers that the accelerator was made with; they are closed when the process ends.

    Args:
        config: settings to show with the run; what is no number, text or None is shown as text.
    """
    plain = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in config.items()}
    accelerator.init_trackers("peft-noah", plain)
    for tracker in accelerator.trackers:
        atexit.register(tracker.finish)
