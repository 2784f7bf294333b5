"""Peak memory of a step of supernet training, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from authors_model import Reference
from measure import SIZES, Table, make_images, make_step, make_supernet

from peft_noah.fast import fast_forward
from peft_noah.training.memory import peak_memory

BATCH = {"ViT-B/16": 16, "small": 64}
ROWS = ("G", "plain", "fast", "fast, weights not packed", "G, checkpointing", "fast, checkpointing")
NOTE = (
    "Largest resident memory of the process after three steps of the largest subnet in float32, minus that of one which "
    "has only imported the libraries: frozen weights, trained weights with AdamW's two moments, kept activations, "
    "gradients. Ratio to G."
)


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


def _in_process(*arguments: str) -> float:
    """Megabytes."""
    command = [sys.executable, str(Path(__file__)), *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


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
    return peak_memory(torch.device("cpu")) / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_step(*sys.argv[1:])))
