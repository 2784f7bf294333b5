"""A folder of checkpoints that survives whatever stops the process that writes it.

    00000120-4f1d2c....safetensors    step 120: tensors, and plain data in the file's own metadata

A checkpoint is one file: written under another name, forced to the disk, and renamed. Its name holds the SHA-256 of
what is in it, so that one which was cut short or damaged is known as such, and the one before it is taken. Nothing is
pickled: Accelerate's ``save_state`` writes its optimizer, scheduler and random states as pickles, which would run
whatever a stranger put into them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peft_noah.jsonfile import MAX_COUNT, check_int, check_number, parse_json

logger = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.safetensors")
_DRAFTS = f".{'[0-9a-f]' * 32}.tmp"
_METADATA = "peft_noah_checkpoint"


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        step: steps done.
        identity: plain data that says what is being trained; another training has another.
        state: plain data.
        tensors: on the CPU.
    """

    step: int
    identity: Mapping[str, object]
    state: Mapping[str, object]
    tensors: Mapping[str, torch.Tensor]


class CheckpointFolder:
    """Where a training keeps its last checkpoints, and when it writes one.

    When a checkpoint is written never changes what is trained. A folder serves one training at a time.

    Args:
        folder: made when the first checkpoint is written.
        every_seconds: time between two; None: only by ``every_steps``, and when the training stops.
        every_steps: steps between two; None: only by time.
        keep: how many to keep. One that cannot be read is skipped, so keep two or more.

    Raises:
        ValueError: on a number out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_seconds: float | None = 60.0,
        every_steps: int | None = None,
        keep: int = 2,
    ) -> None:
        if every_seconds is not None:
            check_number(every_seconds, "every_seconds", above=0)
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if value is not None:
                check_int(value, name, 1, MAX_COUNT)
        self.folder, self.every_seconds, self.every_steps, self.keep = Path(folder), every_seconds, every_steps, keep
        self._written = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one should be written after ``step`` steps."""
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        return self.every_seconds is not None and time.monotonic() - self._written >= self.every_seconds

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole, then remove those that are not kept.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        draft = self.folder / f".{uuid4().hex}.tmp"
        data = {
            "format": FORMAT,
            "step": checkpoint.step,
            "identity": checkpoint.identity,
            "state": checkpoint.state,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(checkpoint.tensors), draft, {_METADATA: json.dumps(data, allow_nan=False)})
            digest = _force_to_disk(draft)
            os.replace(draft, self.folder / f"{checkpoint.step:08d}-{digest}.safetensors")
            _sync_folder(self.folder)
        except (OSError, SafetensorError) as error:  # safetensors has no OSError for a full disk
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step:,} cannot be written to {self.folder} ({error}). Earlier ones "
                "are intact: make room, then type the same command again to go on from there."
            ) from error
        self._prune(checkpoint.step)
        self._written = time.monotonic()

    def exists(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(self._newest_first())

    def load(self, identity: Mapping[str, object]) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; what a killed writer left behind is removed.

        Args:
            identity: of the training that wants to go on.

        Raises:
            ValueError: it belongs to another training; the message says what differs.
        """
        for draft in self.folder.glob(_DRAFTS):
            draft.unlink(missing_ok=True)
        for path in self._newest_first():
            try:
                checkpoint = _read(path)
            except OSError as error:
                logger.warning("checkpoint %s cannot be read and is skipped: %s", path, error)
                continue
            except (ValueError, KeyError, TypeError, SafetensorError) as error:
                logger.warning("checkpoint %s is damaged and is removed: %s", path, error)
                path.unlink(missing_ok=True)
                continue
            self._check_identity(checkpoint.identity, identity)
            self._written = time.monotonic()
            return checkpoint
        return None

    def remove(self) -> None:
        """Remove the checkpoints, the folder if nothing else is in it, and the one above if it is empty, once what was
        trained has been saved."""
        for path in (*self._newest_first(), *self.folder.glob(_DRAFTS)):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # there may be others beside it
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _newest_first(self) -> list[Path]:
        """Checkpoint files, the last step first; of one step, the last written first."""
        paths = [path for path in self.folder.glob("*.safetensors") if _NAME.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (_step(path), path.stat().st_mtime_ns), reverse=True)

    def _prune(self, step: int) -> None:
        # what is ahead of this step was written by a training that this one does not continue
        ahead = [path for path in self._newest_first() if _step(path) > step]
        behind = [path for path in self._newest_first() if _step(path) <= step]
        for path in ahead + behind[self.keep :]:
            path.unlink(missing_ok=True)

    def _check_identity(self, found: Mapping[str, object], asked: Mapping[str, object]) -> None:
        changed = [
            f"{key} is {found.get(key)!r} there and {asked.get(key)!r} here"
            for key in sorted({*found, *asked})
            if found.get(key) != asked.get(key)
        ]
        if changed:
            raise ValueError(
                f"the checkpoint in {self.folder} belongs to another training: {'; '.join(changed)}. Train with what it "
                "was made with, or delete that folder."
            )


def _step(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _read(path: Path) -> Checkpoint:
    """The content of a checkpoint file, after its digest has been checked."""
    with open(path, "rb") as file:
        digest = _digest(file)
    if digest != _NAME.fullmatch(path.name)[2]:
        raise ValueError("it was cut short or changed")
    with safe_open(path, framework="pt") as file:
        data = parse_json(file.metadata()[_METADATA], os.fspath(path))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return Checkpoint(int(data["step"]), dict(data["identity"]), dict(data["state"]), tensors)


def _digest(file) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _force_to_disk(path: Path) -> str:
    """The digest of a file, when all of it is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        return _digest(file)


def _sync_folder(folder: Path) -> None:
    """Force a rename to the disk, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
