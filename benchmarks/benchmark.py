"""How fast peft-noah is, measured anew: every figure is a ratio of times taken side by side in this one run.

    python benchmarks/benchmark.py                     # all sections, on one core; about half an hour
    python benchmarks/benchmark.py --quick             # fewer repeats, under 5 minutes
    python benchmarks/benchmark.py --only training,memory --output results

The tables go to the terminal, and as Markdown, JSON and figures to ``--output``. A section is a file ``section_*.py``
beside this one with a function ``run(quick)`` that yields tables.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

SECTIONS = ("training", "evaluation", "search", "inference", "memory", "growth", "startup")


def main() -> None:
    """Run the sections that were asked for, and write after each what there is so far."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under 5 minutes on two cores")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the results")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := sorted({*chosen} - {*SECTIONS}):
        parser.error(f"unknown sections {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    _use_one_core()

    import torch
    from measure import machine

    torch.set_num_threads(1)
    from peft_noah.jsonfile import dump_json, write_atomically

    arguments.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/benchmark.py", *sys.argv[1:]])
    head = f"`{command}`\n\nMachine: {machine()}.\n"
    print(head)
    tables, started = [], time.perf_counter()
    for name in chosen:
        for result in importlib.import_module(f"section_{name}").run(arguments.quick):
            print(result.markdown(), flush=True)
            tables.append(result)
            if result.curves is not None:
                result.plot(arguments.output / f"{name}.png")
            seconds = time.perf_counter() - started
            text = "\n".join(
                ["# Benchmark\n", head, *(each.markdown() for each in tables), f"Took {seconds:.0f} s.\n"]
            )
            write_atomically(arguments.output / "results.md", text)
            data = {"command": command, "machine": machine(), "tables": [each.to_dict() for each in tables]}
            write_atomically(arguments.output / "results.json", dump_json(data))


def _use_one_core() -> None:
    """Pin this process, and those it starts, to one core, so that others' work on the machine moves it less."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
