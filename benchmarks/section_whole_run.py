"""What screening and shared prefixes are worth in the time of a whole run: `peft-noah run` with each switched off in turn.

    python benchmarks/section_whole_run.py                     # the bundled backbone and task: 3 rounds of 4 runs
    python benchmarks/section_whole_run.py --quick             # 1 round of the smallest runs there are
    python benchmarks/section_whole_run.py --model my-dinov2-small --dataset tasks/clothing --image-size 98 \
        --rounds 2 --output whole_run.md --options "--epochs 10"

A round runs all ways one after the other with the same seed, each in a process and a folder of its own. Baselines are left
out. Screening is off in all ways where `--options` asks for a precision other than float32. Without `--cache-gb` a search
also normalises its images anew for each candidate, and merges LoRA's weights anew.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Table, machine

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import write_atomically
from peft_noah.run.folder import RunFolder
from peft_noah.run.methods import RETRAINED
from peft_noah.run.names import SEARCH
from peft_noah.searching.result import SearchResult

WAYS = {
    "as it is": (),
    "--no-screen": ("--no-screen",),
    "--cache-gb 0": ("--cache-gb", "0"),
    "both": ("--no-screen", "--cache-gb", "0"),
}
BASE = "as it is"
SECONDS = ("supernet", "search", "retraining", "whole", "processor")
QUICK = "--epochs 1 --supernet-epochs 1 --population-size 12 --generations 2 --shots 2"


@dataclass(frozen=True)
class Times:
    """Seconds of one run, and what its search found.

    Args:
        supernet, search, retraining: on the clock, by the run's own account.
        whole: on the clock, from the start of the process to its end.
        processor: of all cores, the same.
        best: the architecture that the search found.
    """

    supernet: float
    search: float
    retraining: float
    whole: float
    processor: float
    best: Architecture


def run(quick: bool) -> Iterator[Table]:
    """The table for the bundled backbone and task."""
    yield compare(["--baselines", "none", *(shlex.split(QUICK) if quick else ())], 1 if quick else 3)


def compare(options: Sequence[str], rounds: int) -> Table:
    """All ways in each of some rounds."""
    times: dict[str, list[Times]] = {name: [] for name in WAYS}
    for seed in range(rounds):
        for name, switches in WAYS.items():
            times[name].append(one_run([*options, *switches, "--seed", str(seed)]))
            print(f"round {seed + 1} of {rounds}, {name}: {times[name][-1]}", file=sys.stderr, flush=True)
    rows = []
    for name, found in times.items():
        same = sum(run.best == base.best for run, base in zip(found, times[BASE], strict=True))
        medians = {what: statistics.median(getattr(run, what) for run in found) for what in SECONDS}
        ratios = [run.processor / base.processor for run, base in zip(found, times[BASE], strict=True)]
        seconds = [f"{medians[what]:.1f}" for what in SECONDS]
        rows.append([name, *seconds, f"{statistics.median(ratios):.3f}", f"{same} of {rounds}"])
    note = (
        f"`peft-noah run {shlex.join(options)}`. Seconds on the clock; of the processor for the whole run, on all cores. "
        f"Medians over {rounds} rounds; the ratio is of processor seconds within a round."
    )
    header = ["", *SECONDS, f"processor, {BASE} = 1", "same architecture"]
    return Table(
        "A whole run", header, rows, note, {name: [run.__dict__ for run in found] for name, found in times.items()}
    )


def one_run(options: Sequence[str]) -> Times:
    """Run the command line in a new folder.

    Raises:
        subprocess.CalledProcessError: the run fails; what it said is on the terminal.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        command = [sys.executable, "-m", "peft_noah", "run", *options, "--output", str(folder)]
        started, before = time.perf_counter(), _processor_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole, processor = time.perf_counter() - started, _processor_seconds() - before
        files = RunFolder(folder)
        supernet, search = files.seconds("supernet"), files.seconds("search")
        return Times(
            supernet=supernet,
            search=search,
            retraining=files.result(RETRAINED.name).seconds - supernet - search,
            whole=whole,
            processor=processor,
            best=SearchResult.load(folder / SEARCH).best.architecture,
        )


def _processor_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """This section alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest runs, to see that the script works")
    parser.add_argument("--model", help="folder of a backbone; the bundled one where left out")
    parser.add_argument("--dataset", help="folder of a task; the bundled one where left out")
    parser.add_argument("--image-size", help="side in pixels")
    parser.add_argument("--options", default="", help="further options of 'peft-noah run', as one text")
    parser.add_argument("--rounds", type=int, help="3 where left out, 1 with --quick")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    options = ["--baselines", "none"]
    for name in ("model", "dataset", "image_size"):
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name.replace('_', '-')}", value]
    options += [*(shlex.split(QUICK) if arguments.quick else ()), *shlex.split(arguments.options)]
    table = compare(options, arguments.rounds or (1 if arguments.quick else 3))
    command = shlex.join(["python", "benchmarks/section_whole_run.py", *sys.argv[1:]])
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    text = f"`{command}`, OMP_NUM_THREADS: {threads}\n\nMachine: {machine()}.\n\n{table.markdown()}"
    print(text)
    if arguments.output is not None:
        write_atomically(arguments.output, text)


if __name__ == "__main__":
    main()
