"""Stopping on request: Ctrl-C and SIGTERM let the step end, save, and say how to go on.

A cluster that takes a machine back sends SIGTERM first, and the same command goes on where it was. With SLURM, two
minutes before the time limit, and again after a pre-emption::

    #!/bin/bash
    #SBATCH --signal=B:TERM@120 --requeue --open-mode=append
    peft-noah run --output runs/mine ... &
    trap 'kill -TERM $!' TERM           # the signal goes to this shell; hand it on
    wait $!; wait $!; code=$?           # the first wait ends with the signal, the second with the command
    [ $code -eq 143 ] && scontrol requeue $SLURM_JOB_ID

143 is 128 + 15, the exit code after SIGTERM; after Ctrl-C it is 130.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: a launcher hands the terminal's Ctrl-C on to processes that have it already; seconds
ECHO = 1.0


class Interrupted(KeyboardInterrupt):
    """The work stopped because it was asked to, and can go on later.

    A `KeyboardInterrupt`, so that no ``except Exception`` takes it for a failure.

    Args:
        message: how to go on.
        number: the signal; ``exit_code`` is 128 + number, as shells have it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = int(number)

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return 128 + self.number


class Interruption:
    """Notes SIGINT and SIGTERM while it is open, instead of dying of them.

    Work asks for :attr:`signal` between two steps; one that came after the last is raised as the context ends. A second
    Ctrl-C, more than a second after the first, kills at once. Outside the main thread, where Python allows no handlers,
    nothing is changed and nothing is noted.

    Examples:
        >>> with Interruption() as interruption:
        ...     for step in range(10):
        ...         interruption.check(f"stopped after {step} steps")
    """

    def __init__(self) -> None:
        #: the number of the signal that came, 0 while none has
        self.signal = 0
        #: whether the work has been told, by `check` or otherwise; what has not been told is raised at the end
        self.told = False
        #: whether to raise `Interrupted` wherever a signal comes, for the time in which a step may never end: a compiler
        #: waits for ever for workers that the same signal has killed, and a terminal, `timeout` and a cluster send it to all
        self.at_once = False
        self._at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not set from Python cannot be set back from it
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if kind is None and not self.told:  # it came when the last step was over
            self.check("stopped")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT and time.monotonic() - self._at > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.signal:
            self.signal, self._at = int(number), time.monotonic()
        if self.at_once and not self.told:
            self.check("stopped")

    def check(self, what: str = "stopped", accelerator: Accelerator | None = None) -> None:
        """Raise if a signal has come.

        Args:
            what: what has stopped.
            accelerator: whose processes must all call this; they stop together. None: this process alone.

        Raises:
            Interrupted: says ``what`` and how to go on.
        """
        stop = self.signal != 0
        if accelerator is not None and accelerator.num_processes > 1:
            from peft_noah.training.processes import total

            (stop,) = total(accelerator, stop)
        if stop:
            self.told = True
            raise interrupted(what, self.signal or signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` wherever they come, but inside an `Interruption`.

    For a whole command whose files are each written whole or not at all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise interrupted("stopped", number)

    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def interrupted(what: str, number: int) -> Interrupted:
    """The error of work that was stopped by a signal, with the sentence that says how to go on."""
    return Interrupted(
        f"{what} ({signal.Signals(number).name}). Type the same command again to go on from there.", number
    )
