"""A frozen subnet in use, against the bare backbone that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from measure import SIZES, Table, check_equal, interleave, logits_of, make_images, make_supernet, sample, speed_table
from peft import PeftModel
from torch import nn

from peft_noah.fast import fast_forward

BATCH = {"ViT-B/16": 8, "small": 64}
NOTE = (
    "Batches of {batches}, without gradients, in evaluation mode, {rounds} rounds over {subnets} subnets with dims sampled "
    "from the VTAB-1k space. Ratio of the bare backbone's time, transformers' own, to this one's: above 0.95 means that a "
    "subnet takes less than 1.05 times as long. The backbone alone in `fast_forward` shows what the prompt modules cost "
    "there. torch.compile is of one fixed subnet, and of the backbone."
)


def run(quick: bool) -> Iterator[Table]:
    """float32."""
    rounds = {"small": 4} if quick else {"ViT-B/16": 12, "small": 32}
    subnets = 1 if quick else 4
    times = {
        f"{size}, batch {BATCH[size]}": _times(size, rounds[size], subnets, compiled=not quick) for size in rounds
    }
    note = NOTE.format(batches=[BATCH[size] for size in rounds], rounds=[*rounds.values()], subnets=subnets)
    yield speed_table("Inference with a frozen subnet", times, note, base="backbone")


def _times(size: str, rounds: int, count: int, compiled: bool) -> dict[str, list[float]]:
    supernet = make_supernet(SIZES[size]).eval()
    images, _ = make_images(SIZES[size], BATCH[size])
    subnets = [supernet.extract(rows) for rows in sample(supernet, count)]
    bare = _bare(subnets[0])
    with ExitStack() as stack:
        fast = [_entered(stack, supernet.extract(rows)) for rows in sample(supernet, count)]
        models = {
            "backbone": [bare],
            "subnet": subnets,
            "subnet in fast_forward": fast,
            "backbone in fast_forward": [_entered(stack, _bare(subnets[0]))],
        }
        if compiled:
            again = _entered(stack, supernet.extract(sample(supernet, 1)[0]))
            models["backbone, compiled"] = [torch.compile(bare)]
            models["subnet, compiled"] = [torch.compile(subnets[0])]
            models["subnet in fast_forward, compiled"] = [torch.compile(again)]
        with torch.inference_mode():
            for one, other in zip(subnets, fast, strict=True):
                check_equal(logits_of(other, images), logits_of(one, images), "subnet in fast_forward")
        return interleave({name: _forward(choice, images) for name, choice in models.items()}, rounds, warmup=count)


def _bare(subnet: PeftModel) -> nn.Module:
    with torch.no_grad():
        return subnet.base_model._bare_copy().eval()


def _entered(stack: ExitStack, model: nn.Module) -> nn.Module:
    stack.enter_context(fast_forward(model))
    return model


def _forward(models: list[nn.Module], images: torch.Tensor):
    @torch.inference_mode()
    def forward(number: int) -> None:
        logits_of(models[number % len(models)], images)

    return forward
