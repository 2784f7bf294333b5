"""Peak memory of a step of supernet training, and of a search, each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from measure import SIZES, Table, as_floats, make_images, make_split, make_step, make_supernet, sample
from reference import Reference

from peft_noah.fast import fast_forward
from peft_noah.searching.bounding import ROUND
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training.memory import peak_memory
from peft_noah.training.processes import make_accelerator

BATCH = {"ViT-B/16": 16, "small": 64}
ROWS = ("G", "plain", "fast", "fast, weights not packed", "G, checkpointing", "fast, checkpointing")
NOTE = (
    "Largest resident memory of the process after three steps of the largest subnet in float32, minus that of one which "
    "has only imported the libraries: frozen weights, trained weights with AdamW's two moments, kept activations, "
    "gradients. Ratio to G."
)
CACHES_GB = (0.0, 0.1, 0.3, 1.0)
CACHE_NOTE = (
    "The same for {candidates} candidates of a search, the small ViT, 200 images in one batch, each in full; median of "
    "three processes. What is above that without a cache must stay below the limit. glibc's malloc keeps what is freed for "
    "later, with holes in it, and its processes differ by some 200 MB; with {variable} in the environment it gives blocks "
    "above 1 MB back at once, processes agree to 1 MB, and what is left is what the search holds."
)
#: what makes glibc's malloc give large blocks back to the system when they are freed
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def run(quick: bool) -> Iterator[Table]:
    """One process per row and size."""
    sizes = ["small"] if quick else list(SIZES)
    peaks = {size: {name: _in_process(size, name) for name in ("nothing", *ROWS)} for size in sizes}
    header = ["", *(f"{size}, batch {BATCH[size]}: {what}" for size in sizes for what in ("MB", "this / G"))]
    rows = []
    for name in ROWS:
        row = [name]
        for size in sizes:
            used, reference = (peaks[size][key] - peaks[size]["nothing"] for key in (name, "G"))
            row += [f"{used:,.0f}", f"{used / reference:.2f}"]
        rows.append(row)
    yield Table("Peak memory of a training step", header, rows, NOTE, values={"megabytes": peaks})
    if not quick:
        yield _of_search(30)


def _of_search(candidates: int) -> Table:
    peaks: dict[str, dict[str, float]] = {}
    for limit in CACHES_GB:
        arguments = ("search", str(limit), str(candidates))
        peaks[f"{limit:g}"] = {
            name: statistics.median(_in_process(*arguments, **variables) for _ in range(3))
            for name, variables in (("malloc", {}), ("giving back", GIVING_BACK))
        }
    least = next(iter(peaks.values()))
    rows = []
    for limit, found in peaks.items():
        row = [limit, f"{1e3 * float(limit):,.0f}"]
        for name, peak in found.items():
            row += [f"{peak:,.0f}", f"{peak - least[name]:,.0f}"]
        rows.append(row)
    header = ["--cache-gb", "limit", "MB of the process", "above no cache", "given back: MB", "above no cache"]
    note = CACHE_NOTE.format(candidates=candidates, variable="=".join(*GIVING_BACK.items()))
    return Table("Peak memory of a search", header, rows, note, values={"megabytes": peaks})


def _in_process(*arguments: str, **variables: str) -> float:
    """Megabytes, with some variables in the environment."""
    command, environment = [sys.executable, str(Path(__file__)), *arguments], {**os.environ, **variables}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def _search(limit: str, candidates: str) -> float:
    model = make_supernet(SIZES["small"]).eval()
    scorer = Scorer(model, make_split(SIZES["small"], 200), as_floats, make_accelerator(), cache_gb=float(limit))
    with fast_forward(model):
        subnets = sample(model, int(candidates))
        for first in range(0, len(subnets), ROUND):  # as a search hands them over
            map_over_processes(scorer, subnets[first : first + ROUND])
    return _peak()


def _step(size: str, name: str) -> float:
    if name != "nothing":
        model = make_supernet(SIZES[size])
        subnet = model.get_search_space().largest()
        options = {"pack_weights": "not packed" not in name} if name.startswith("fast") else None
        if "checkpointing" in name and options is not None:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        if name.startswith("G"):
            model = Reference(model)
            model.checkpointing = "checkpointing" in name
        model.set_architecture(subnet)
        with nullcontext() if options is None else fast_forward(model, **options):
            step = make_step(model, *make_images(SIZES[size], BATCH[size]))
            for _ in range(3):
                step()
    return _peak()


def _peak() -> float:
    return peak_memory(torch.device("cpu")) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, *more = sys.argv[1:]
    print(json.dumps(_search(*more) if kind == "search" else _step(kind, *more)))
