"""Batches in which every sample has an adapter of its own, named by ``adapter_names=[...]`` as for PEFT's LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from peft_noah.tuner.layer import noah_layers
from peft_noah.tuner.prompts import PromptModule, by_row

#: the name of "no adapter"
BASE = "__base__"


@contextmanager
def adapter_per_sample(tuner: BaseTuner, names: Sequence[str]) -> Iterator[None]:
    """Run what is inside with adapter ``names[i]`` for sample i, and ``"__base__"`` for none.

    Raises:
        ValueError: in training mode, for unknown or merged adapters, or where token counts differ: one batch has one
            length, so that VPT adapters go only with others of as many tokens in every block.
    """
    _check(tuner, names)
    layers = [layer for _, layer in noah_layers(tuner.model)]
    handles = [
        module.register_forward_pre_hook(partial(_pass_names, names=names), with_kwargs=True)
        for module in tuner.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    try:
        for layer in layers:
            layer.batch_adapters = tuple(names)
        yield
    finally:
        for layer in layers:
            layer.batch_adapters = None
        for handle in handles:
            handle.remove()


def _pass_names(wrapper: nn.Module, args: tuple, kwargs: dict, names: Sequence[str]) -> tuple[tuple, dict]:
    # an adapter without a classifier of its own uses the original one
    return args, {**kwargs, "adapter_names": [name if name in wrapper._adapters else BASE for name in names]}


def _check(tuner: BaseTuner, names: Sequence[str]) -> None:
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"adapter_names must be a list with one adapter name per sample, got {names!r}.")
    unknown = sorted({name for name in names if name != BASE and name not in tuner.peft_config})
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    if any(layer.merged for _, layer in noah_layers(tuner.model)):
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )
    first, *others = dict.fromkeys(names) or [BASE]
    for other in others:
        ours, theirs = (_by_row(tuner, name) for name in (first, other))
        for row in ours | theirs:
            cls = type((ours | theirs)[row][0])
            cls.check_batch(ours.get(row, []), theirs.get(row, []), (first, other))


def _by_row(tuner: BaseTuner, name: str) -> dict[str, list[PromptModule]]:
    modules = (module for _, layer in noah_layers(tuner.model) for module in layer.prompt_modules(name))
    return {group[0].row: group for _, group in by_row(modules)}
