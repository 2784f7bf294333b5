"""What importing the package adds, and how soon the command line shows its help."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from measure import Table

IMPORT = "import time, peft; start = time.perf_counter(); import peft_noah; print(time.perf_counter() - start)"


def run(quick: bool) -> Iterator[Table]:
    """In fresh processes; the first of each, which fills the disk's cache, is left out."""
    repeats = 2 if quick else 9
    imports = [float(_output([sys.executable, "-c", IMPORT])) for _ in range(repeats + 1)][1:]
    helps = [_seconds([sys.executable, "-m", "peft_noah", "--help"]) for _ in range(repeats + 1)][1:]
    rows = [
        [name, f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]
        for name, values in {"import peft_noah after import peft": imports, "peft-noah --help": helps}.items()
    ]
    note = f"Seconds on the clock, {repeats} fresh processes each."
    yield Table("Start-up", ["", "median", "range"], rows, note, values={"import": imports, "help": helps})


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    _output(command)
    return time.perf_counter() - start
