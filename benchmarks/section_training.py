"""A step of supernet training: each gain added in turn, against the authors' model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from authors_model import Reference
from measure import (
    BATCH,
    SIZES,
    Table,
    check_equal,
    interleave,
    logits_of,
    make_images,
    make_sampled_step,
    make_step,
    make_supernet,
    sample,
    share,
    speed_table,
)

from peft_noah.fast import fast_forward

#: each row adds an option of `fast_forward` to those above
ROWS = {
    "transformers' layers, elastic slices": None,
    "+ one product for q, k, v": "fuse_projections",
    "+ prompts as keys and values only": "prompts_as_keys",
    "+ last block for CLS only": "head_tokens_only",
    "+ frozen weights packed": "pack_weights",
    "+ patches by a product": "patches_by_product",
}
NOTE = (
    "Forward, cross-entropy, backward and AdamW of a sampled VTAB-1k subnet, recipe 'released'; the same weights, images "
    "and subnets for all, one after the other in each of {rounds} rounds. Median, and ratio of G's float32 time to this "
    "one's: median over rounds and quartiles. {more}"
)


def run(quick: bool) -> Iterator[Table]:
    """Without dropout, where all compute the same numbers; with the released code's, where they draw others."""
    rounds = {"ViT-B/16": 1 if quick else 10, "small": 3 if quick else 60}
    errors = []
    times = {f"{size}, batch {BATCH[size]}": _times(size, rounds[size], errors) for size in SIZES}
    more = f"Logits in float32 agree to {max(errors):.0e} of the largest."
    yield speed_table("Supernet training step", times, NOTE.format(rounds=list(rounds.values()), more=more))
    if quick:
        return
    times = {
        f"{size}, batch {BATCH[size]}": _times(size, rounds[size] // 2, [], dropout=0.1, drop_path=0.1)
        for size in SIZES
    }
    title = "Supernet training step, dropout 0.1 and stochastic depth 0.1"
    yield speed_table(title, times, NOTE.format(rounds=[n // 2 for n in rounds.values()], more=""))


def _times(size: str, rounds: int, errors: list[float], **options) -> dict[str, list[float]]:
    config = SIZES[size]
    supernet = make_supernet(config, **options)
    images, labels = make_images(config, BATCH[size])
    subnets = sample(supernet, rounds)
    models = {"G": Reference(supernet)}
    with ExitStack() as stack:
        chosen = dict.fromkeys([*filter(None, ROWS.values()), "merge_lora"], False)
        for name, option in ROWS.items():
            models[name] = share(supernet)
            if option is not None:
                chosen[option] = True
                stack.enter_context(fast_forward(models[name], **chosen))
        if not options:
            errors += _check(models, subnets[0], images)
        steps = {name: make_step(model, images, labels) for name, model in models.items()}
        last = list(models)[-1]
        for name, model in {"+ bfloat16": last, "G in bfloat16": "G"}.items():
            models[name], steps[name] = models[model], make_step(models[model], images, labels, torch.bfloat16)
        return interleave(
            {name: make_sampled_step(models[name], step, subnets) for name, step in steps.items()}, rounds
        )


def _check(models: dict, subnet, images: torch.Tensor) -> list[float]:
    logits = {}
    for name, model in models.items():
        model.set_architecture(subnet)
        logits[name] = logits_of(model, images).detach()
    return [check_equal(value, logits["G"], name) for name, value in logits.items()]
