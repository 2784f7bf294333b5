"""How the time of a training step, and of a generation of the search, grows with each size, all else fixed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from measure import BATCH, SIZES, Table, as_floats, interleave, make_images, make_split, make_step, make_supernet
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from peft_noah import Architecture, NoahConfig
from peft_noah.fast import fast_forward
from peft_noah.searching.budget import scaled_budget
from peft_noah.searching.evolution import random_search
from peft_noah.searching.scoring import Scorer, map_over_processes
from peft_noah.training.processes import make_accelerator

SERIES = {
    "dims of all modules": [1, 10, 50, 100],
    "blocks that carry modules": [0, 4, 8, 12],
    "patches": [16, 64, 144, 256],
    "blocks": [3, 6, 12, 24],
    "batch": [4, 8, 16, 32],
    "candidates": [4, 8, 16, 32],
}
NOTE = (
    "The 192-wide ViT in `fast_forward`, 12 blocks, 64 patches, batch 16, dims 10 in all blocks unless the row says "
    "otherwise; ms per step, median of {rounds} rounds in which the sizes of a row take turns. Candidates: ms per generation of "
    "the search, each scored in full on 16 images. The last column is by what "
    "factor time and size grow between the last two: equal where time is proportional, less where a fixed part remains; "
    "attention adds a quadratic part to the patches. Behind VPT's depth its tokens run on, as in the authors' code, so blocks "
    "without modules cost hardly less than those with."
)


def run(quick: bool) -> Iterator[Table]:
    """float32, with frozen weights packed."""
    rounds = 1 if quick else 15
    seconds = {name: _series(name, sizes, rounds) for name, sizes in SERIES.items()}
    curves = {
        name: [(float(size), 1e3 * statistics.median(values)) for size, values in times.items()]
        for name, times in seconds.items()
    }
    rows = []
    for name, points in curves.items():
        (before, less), (size, more) = points[-2:]
        cells = [f"{ms:.0f} ({at:g})" for at, ms in points]
        rows.append([name, *cells, f"{more / less:.2f} ({size / before:.2f})"])
    header = ["", "ms (at)", "ms (at)", "ms (at)", "ms (at)", "last step: time (size)"]
    note = NOTE.format(rounds=rounds)
    yield Table("Growth of a training step and of a generation", header, rows, note, {"seconds": seconds}, curves)


def _series(name: str, sizes: list[int], rounds: int) -> dict[str, list[float]]:
    with ExitStack() as stack:
        if name == "candidates":
            return interleave({str(size): _generation(stack, size) for size in sizes}, max(1, rounds // 5))
        return interleave({str(size): _step(stack, name, size) for size in sizes}, rounds)


def _generation(stack: ExitStack, size: int):
    config = SIZES["small"]
    model = make_supernet(config).eval()
    scorer = Scorer(model, make_split(config, 16), as_floats, make_accelerator())
    budget = scaled_budget([config.hidden_size] * config.num_hidden_layers)
    stack.enter_context(fast_forward(model))
    space, count = model.get_search_space(), model.count_parameters
    return lambda seed: random_search(space, scorer, count, budget, size, seed=seed, map=map_over_processes)


def _step(stack: ExitStack, name: str, size: int):
    blocks = size if name == "blocks" else 12
    config = SIZES["small"].to_dict() | {"num_hidden_layers": blocks}
    if name == "patches":
        config["image_size"] = 8 * round(size**0.5)
    config = ViTConfig(**config)
    dim = size if name == "dims of all modules" else 10
    depth = size if name == "blocks that carry modules" else blocks
    stored = Architecture.uniform(blocks, lora=dim, adapter=dim, vpt=dim)
    options = NoahConfig(recipe="released", dropout=0.0, drop_path=0.0, architecture=stored)
    model = get_peft_model(ViTForImageClassification(config), options)
    model.set_architecture({name: [dim] * depth + [0] * (blocks - depth) for name in stored})
    step = make_step(model, *make_images(config, size if name == "batch" else BATCH["small"]))
    stack.enter_context(fast_forward(model))
    return lambda number: step()
