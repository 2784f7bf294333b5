"""How fast peft-noah is, measured anew: every figure is a ratio of times taken side by side in this one run.

    python benchmarks/benchmark.py                     # all sections, on one core; about an hour
    python benchmarks/benchmark.py --only gpu          # on a CUDA device, with all cores: compiling needs them; 5 minutes
    python benchmarks/benchmark.py --quick             # fewer repeats, about 5 minutes
    python benchmarks/benchmark.py --only training,memory --output results

The tables go to the terminal, and as Markdown, JSON and figures to ``--output``; a section that is measured again takes the
place of what stood there. A section is a file ``section_*.py`` beside this one with a function ``run(quick)`` that yields
tables.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

SECTIONS = ("peft", "training", "evaluation", "search", "inference", "memory", "growth", "startup", "gpu")


def main() -> None:
    """Run the sections that were asked for, and write each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, about 5 minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the results")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := sorted({*chosen} - {*SECTIONS}):
        parser.error(f"unknown sections {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if chosen != ["gpu"]:
        _use_one_core()

    import torch
    from measure import machine

    torch.set_num_threads(1)
    command = " ".join(["python", "benchmarks/benchmark.py", *sys.argv[1:]])
    print(f"`{command}`\n\nMachine: {machine()}.\n")
    for name in chosen:
        tables = []
        for result in importlib.import_module(f"section_{name}").run(arguments.quick):
            print(result.markdown(), flush=True)
            tables.append(result)
            if result.curves is not None:
                result.plot(arguments.output / f"{name}.png")
        section = {"command": command, "machine": machine(), "tables": [table.to_dict() for table in tables]}
        keep(arguments.output, name, section)


def keep(folder: Path, name: str, section: dict) -> None:
    """Put a section's tables among those of the others."""
    from peft_noah.jsonfile import dump_json, read_json, write_atomically

    path = folder / "results.json"
    found = read_json(path) if path.exists() else {}
    found[name] = section
    write_atomically(path, dump_json(found))
    write_atomically(folder / "results.md", markdown(found))


def markdown(found: dict[str, dict]) -> str:
    """All sections in their order."""
    from measure import Table

    parts = ["# How fast peft-noah is\n"]
    for name in [name for name in SECTIONS if name in found]:
        section = found[name]
        parts.append(
            f"## {name.upper() if name in ('gpu', 'peft') else name.capitalize()}\n\n`{section['command']}`. {section['machine']}.\n"
        )
        parts += [Table(**table).markdown() for table in section["tables"]]
    return "\n".join(parts)


def _use_one_core() -> None:
    """Pin this process, and those it starts, to one core, so that others' work on the machine moves it less."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
