"""What a model computes with while it is trained: the fast forward, and a compiler where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from peft_noah.fast import FastForward, fast_forward
from peft_noah.training.processes import is_compiling


@contextmanager
def fast_or_compiled(
    model: nn.Module, accelerator: Accelerator, elastic: bool, example: Callable[[], Mapping[str, torch.Tensor]]
) -> Iterator[None]:
    """Let a model compute fast for a while; what a compiler made, and the memory of its graphs, goes in the end.

    Args:
        model: not wrapped.
        accelerator: says whether the model is compiled.
        elastic: whether it is a supernet, which a compiler has to see in one shape.
        example: makes what the model is called with for a few images. A compiler cannot compare a family or module that is
            not built in with its plain forward, so that is done before, on these.

    Raises:
        ValueError: if a supernet to be compiled cannot keep one shape.
    """
    with fast_forward(model) as fast:
        if not is_compiling(accelerator):
            yield
            return
        try:
            with model.fixed_shapes() if elastic else nullcontext():
                if fast.comparison is not None:
                    _compare(fast, model, example(), elastic)
                yield
        finally:
            torch.compiler.reset()


def _compare(fast: FastForward, model: nn.Module, inputs: Mapping[str, torch.Tensor], elastic: bool) -> None:
    """Compare with the plain forward: the smallest and the largest subnet of a supernet, and one without modules."""
    fast.compare(**inputs)
    if not elastic:
        return
    stored = model.get_architecture()
    nothing = {row: [0] * stored.num_blocks for row in stored}
    for architecture in (nothing, model.get_search_space().smallest(), stored):
        model.set_architecture(architecture)
        fast.compare(**inputs)
    if fast.reason is not None:
        raise ValueError(
            f"this supernet cannot be compiled: {fast.reason}. Train without compiling, or let zeros behind a module's "
            "active slice change nothing."
        )
