"""Break files of every kind that peft-noah reads, load them, and count what happens.

    python tests/fuzz_files.py --files 20000 --output results/fuzz

A file must be accepted, or refused by a ValueError with a readable message. Loading happens in a process of its own,
under a limit of time for each file and of memory; a process that dies is a crash of the file it was at. The mutated files
depend on nothing but their numbers: `--kind image --first 137 --files 1` loads one again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

SECONDS, GROWTH_GB, ADDRESS_GB = 20, 1.0, 16
OUTCOMES = ("accepted", "refused", "crash", "hang", "memory")
COMMAND = "python tests/fuzz_files.py --files {files} --output results/fuzz"


def shares(files: int, kinds: dict[str, int]) -> dict[str, int]:
    """How many files of each kind, by weight; rounded up, so that the sum is no less than asked."""
    total = sum(kinds.values())
    return {name: -(-files * weight // total) for name, weight in kinds.items()}


# ---------------------------------------------------------------------- the process that loads


class Hang(BaseException):
    """A file took too long; no reader's `except Exception` may swallow it."""


def _too_long(*_) -> None:
    raise Hang


def work(jobs: list[tuple[str, int, int]]) -> None:
    """Load files and print one line of JSON for each: kind, number, outcome."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_GB * 1024**3,) * 2)
    logging.disable(logging.CRITICAL)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers
    from hostile_files import Files

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        for name, first, last in jobs:
            files = Files(name, Path(folder) / name.replace(" ", "-"))
            if bad := [outcome for outcome in map(files.load, files.originals) if outcome != "accepted"]:
                raise SystemExit(f"a good {name} is not accepted: {bad[0]}")
            for number in range(first, last):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                print(json.dumps([name, number, _load(files, number)]), flush=True)
                if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > GROWTH_GB * 1024**2:
                    print(json.dumps([name, number, "memory"]), flush=True)


def _load(files, number: int) -> str:
    data = files.mutated(number)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return files.load(data)
    except Hang:
        return "hang"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---------------------------------------------------------------------- the process that counts


def run(counts: dict[str, int], first: int) -> dict[str, dict[int, str]]:
    """Outcome by kind and number; a worker that dies is replaced, and goes on behind the file it died of."""
    found: dict[str, dict[int, str]] = {name: {} for name in counts}
    last = {name: first + count for name, count in counts.items()}

    def left() -> list[tuple[str, int, int]]:
        starts = {name: max(found[name], default=first - 1) + 1 for name in counts}
        return [(name, starts[name], last[name]) for name in counts if starts[name] < last[name]]

    while jobs := left():
        status: list[int] = []
        for name, number, outcome in _worker(jobs, status):
            found[name][number] = outcome
        if dead := left():
            name, number, _ = dead[0]
            found[name][number] = f"crash: the process ended with status {status[0]}"
    return found


def _worker(jobs: list[tuple[str, int, int]], status: list[int]):
    """Lines of a worker, then its exit status. One that is stuck outside Python, where no alarm reaches it, is killed."""
    command = [sys.executable, __file__, "--worker", json.dumps(jobs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    watch = subprocess.Popen([sys.executable, "-c", _WATCH, str(process.pid)], stdin=subprocess.PIPE)
    for line in process.stdout:
        watch.stdin.write(b"x")
        watch.stdin.flush()
        if line.startswith(b"["):
            yield json.loads(line)
    status[:] = [process.wait()]
    watch.stdin.close()
    watch.wait()


# kills a process for which nothing has been heard for three times the limit of one file, its start included
_WATCH = f"""
import os, select, signal, sys
while select.select([0], [], [], {3 * SECONDS + 60})[0]:
    if not os.read(0, 65536):
        sys.exit()
os.kill(int(sys.argv[1]), signal.SIGKILL)
"""


def markdown(found: dict[str, dict[int, str]], facts: dict[str, object]) -> str:
    """The table by kind, and every fault."""
    rows, faults = [], []
    for name, outcomes in found.items():
        counted = Counter(outcome.split(":")[0] for outcome in outcomes.values())
        rows.append([name, len(outcomes), *(counted[outcome] for outcome in OUTCOMES)])
        faults += [f"- {name} {n}: {o}" for n, o in sorted(outcomes.items()) if o not in ("accepted", "refused")]
    rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, len(OUTCOMES) + 2))])
    header = ["kind", "files", "accepted", "refused, clear error", "crashes", "hangs", "memory"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join("| " + " | ".join(f"{x:,}" if isinstance(x, int) else x for x in line) + " |" for line in lines)
    about = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text = f"# Mutated files\n\n```bash\n{facts['command']}\n```\n\n{table}\n\n{about}\n"
    return text + ("\n## Faults\n\n" + "\n".join(faults[:200]) + "\n" if faults else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=20_000, help="how many files, over all kinds")
    parser.add_argument("--kind", help="one kind alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--output", type=Path, help="folder for fuzz.md and fuzz.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(json.loads(options.worker))

    from hostile_files import KINDS

    started = time.perf_counter()
    counts = shares(options.files, {name: kind.weight for name, kind in KINDS.items() if options.kind in (None, name)})
    found = run(counts, options.first)
    packages = ("peft-noah", "torch", "transformers", "peft", "datasets", "pyarrow", "pillow", "safetensors")
    facts = {
        "command": COMMAND.format(files=options.files),
        "limits": f"{SECONDS} s a file; {GROWTH_GB:g} GB more memory for one file; {ADDRESS_GB} GB of addresses",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages)
        + f", Python {platform.python_version()}",
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    text = markdown(found, facts)
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "fuzz.md").write_text(text)
        table = {name: Counter(outcome.split(":")[0] for outcome in values.values()) for name, values in found.items()}
        (options.output / "fuzz.json").write_text(json.dumps({**facts, "kinds": table}, indent=1) + "\n")
    sys.exit(any(outcome not in ("accepted", "refused") for values in found.values() for outcome in values.values()))


if __name__ == "__main__":
    main()
