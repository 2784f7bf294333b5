"""Scoring a candidate in a search: a subnet is chosen, then a few hundred images are classified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from authors_model import Reference
from measure import (
    SIZES,
    Table,
    check_equal,
    interleave,
    make_images,
    make_score,
    make_supernet,
    sample,
    share,
    speed_table,
)

from peft_noah.fast import fast_forward

BATCH = {"ViT-B/16": 25, "small": 100}
#: each row adds options of `fast_forward` to those above
ROWS = {
    "transformers' layers": (),
    "+ LoRA merged, prompts as keys and values, last block for CLS only": (
        "fuse_projections",
        "merge_lora",
        "prompts_as_keys",
        "head_tokens_only",
    ),
    "+ frozen weights packed": ("pack_weights",),
    "+ patches by a product": ("patches_by_product",),
}
NOTE = (
    "One candidate after the other, {images} images each, in batches of {batches}; choosing the subnet and merging it "
    "counts. {rounds} rounds; median, and ratio of G's float32 time to this one's: median over rounds and quartiles. "
    "Logits agree to {error:.0e} of the largest in float32, {rounded:.0e} in bfloat16."
)


def run(quick: bool) -> Iterator[Table]:
    """Without gradients, in evaluation mode."""
    images = {"small": 50} if quick else {"ViT-B/16": 25, "small": 200}
    rounds = {"small": 3} if quick else {"ViT-B/16": 5, "small": 15}
    errors: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    times = {f"{size}, {images[size]} images": _times(size, images[size], rounds[size], errors) for size in images}
    note = NOTE.format(
        images=[*images.values()],
        batches=[BATCH[size] for size in images],
        rounds=[*rounds.values()],
        error=max(errors["float32"]),
        rounded=max(errors["bfloat16"]),
    )
    yield speed_table("Scoring a candidate", times, note)


def _times(size: str, count: int, rounds: int, errors: dict[str, list[float]]) -> dict[str, list[float]]:
    supernet = make_supernet(SIZES[size]).eval()
    batches = make_images(SIZES[size], count)[0].split(BATCH[size])
    subnets = sample(supernet, rounds)
    models = {"G": Reference(supernet)}
    with ExitStack() as stack:
        chosen = dict.fromkeys((option for options in ROWS.values() for option in options), False)
        for name, options in ROWS.items():
            models[name] = share(supernet)
            if options:
                chosen.update(dict.fromkeys(options, True))
                stack.enter_context(fast_forward(models[name], **chosen))
        functions = {name: make_score(model, batches, subnets, None) for name, model in models.items()}
        functions["+ bfloat16"] = make_score(list(models.values())[-1], batches, subnets, torch.bfloat16)
        functions["G in bfloat16"] = make_score(models["G"], batches, subnets, torch.bfloat16)
        expected = functions["G"](0)
        for name, function in functions.items():
            kind, tolerance = ("bfloat16", 0.1) if "bfloat16" in name else ("float32", 1e-4)
            errors[kind].append(check_equal(function(0), expected, name, tolerance))
        return interleave(functions, rounds)
