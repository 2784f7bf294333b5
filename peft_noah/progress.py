"""Progress of long work: live bars with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Units done per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s", style="cyan")


class Reporter:
    """Shows stages and their progress, on the main process only.

    Args:
        console: where to write; None: standard error.
        enabled: False on every other process.
    """

    def __init__(self, console: Console | None = None, enabled: bool = True) -> None:
        self.console = console or Console(stderr=True, quiet=not enabled)
        self.live = enabled and self.console.is_terminal

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, unit: str = "steps") -> Iterator[Callable[[int, int, str], None]]:
        """A stage of known or growing length; yields ``update(done, total, note)``."""
        started, last = time.perf_counter(), [0, ""]
        if not self.live:
            self.say(f"{name} ...")

            def note(done: int, total: int, text: str = "") -> None:
                last[:] = done, text

            yield note
            counted = unit.removesuffix("s") if last[0] == 1 else unit
            self.say(f"{name}: {last[0]:,} {counted} in {time.perf_counter() - started:.1f} s{_tail(last[1])}")
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=None, unit=unit, note="")
            yield lambda done, total, text="": bars.update(task, completed=done, total=total, note=text)


def _tail(text: str) -> str:
    return f", {text}" if text else ""
