"""Shared prefixes: what a block outputs depends only on the choices up to it, so related candidates share the first ones.

    embeddings -> block 0 -> block 1 -> ... -> block n - 1 -> norm -> classifier
                         kept       kept

The model itself runs, with what is kept in place of the blocks that it stands for.
"""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from peft_noah.architecture import Architecture
from peft_noah.backbones import BACKBONES
from peft_noah.prompts import Vpt

SHARERS = 10  # candidates whose prefixes must fit beside each other: the parents


class PrefixCache:
    """Hidden states of images behind leading blocks, by the choices in these blocks; the least recently used leave.

    The first call of each kind is checked against a plain one: a model that does more between its blocks than hand
    hidden states on runs as it is.

    Args:
        model: a `PeftModel` with a NOAH adapter on a transformers classifier. Its weights must not change meanwhile.
        images: how many there are; each has a number.
        limit_gb: most memory the states may take, in gigabytes (10^9 bytes).

    Attributes:
        reason: why nothing is kept, so that `logits` is a plain call; None where prefixes are shared.
        bytes: memory that the states take now.
        blocks_run, blocks_shared: blocks times images, computed and spared so far.
    """

    def __init__(self, model: nn.Module, images: int, limit_gb: float) -> None:
        self.model, self.images, self.limit = model, images, int(limit_gb * 1e9)
        self.bytes = self.blocks_run = self.blocks_shared = 0
        self._states: OrderedDict[tuple, _State] = OrderedDict()
        self._depth: int | None = None  # blocks whose outputs are kept; known once there is one
        self._new: list[tuple] = []
        self._checked: set[bool] = set()
        self.reason = self._find_blocks()

    def _find_blocks(self) -> str | None:
        root = next((module for module in self.model.modules() if isinstance(module, PreTrainedModel)), None)
        backbone = BACKBONES.get(getattr(getattr(root, "config", None), "model_type", None))
        if not self.limit or backbone is None:
            return "no memory is allowed for it" if backbone else "the model's blocks are not known"
        names = backbone.block_names(root)
        parent, _, self._name = names[0].rpartition(".")[0].rpartition(".")
        self._parent = root.get_submodule(parent)
        self._blocks = getattr(self._parent, self._name)
        if not isinstance(self._blocks, nn.ModuleList) or len(names) != len(self._blocks):
            return "the model's blocks are not in one list"
        self._looks_ahead = self.model.peft_config[self.model.active_adapter].vpt_past_depth == "carry"
        return None

    # ------------------------------------------------------------------ running the model

    def logits(self, architecture: Architecture, images: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of the active subnet, which is ``architecture``, on ``pixels`` of these images."""
        if self.reason is not None:
            return self.model(pixel_values=pixels).logits
        keys, rows = self._keys(architecture), torch.tensor(images)
        start = self._shared(keys, rows)
        if bool(start) not in self._checked:
            return self._check(keys, start, rows, pixels)
        self.blocks_shared += start * len(images)
        self.blocks_run += (len(self._blocks) - start) * len(images)
        return self._run(keys, start, rows, pixels)

    def _keys(self, architecture: Architecture) -> list[tuple]:
        """What the output of each block but the last depends on."""
        count, rows = len(self._blocks), [architecture[name] for name in sorted(architecture)]
        keys = [tuple(row[:end] for row in rows) for end in range(1, count)]
        if self._looks_ahead:  # tokens run on into a block that has none of its own
            vpt = architecture.get(Vpt.name, (0,) * count)
            keys = [(*key, vpt[end] == 0) for end, key in enumerate(keys, start=1)]
        return keys

    def _shared(self, keys: list[tuple], rows: torch.Tensor) -> int:
        """How many leading blocks need not run; their states count as used."""
        start = 0
        for end, key in enumerate(keys[: self._depth], start=1):
            if key in self._states and self._states[key].known[rows].all():
                start = end
        for key in reversed(keys[:start]):  # the first block's last, for it is shared most
            if key in self._states:
                self._states.move_to_end(key)
        return start

    def _run(self, keys: list[tuple], start: int, rows: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        path: list[nn.Module] = [_Kept(self._states[keys[start - 1]].values[rows])] if start else []
        for block in range(start, len(self._blocks)):
            path.append(self._blocks[block])
            if block < (len(keys) if self._depth is None else self._depth):
                path.append(_Tap(partial(self._keep, keys[block], rows)))
        setattr(self._parent, self._name, nn.ModuleList(path))
        try:
            return self.model(pixel_values=pixels).logits
        finally:
            setattr(self._parent, self._name, self._blocks)

    def _check(self, keys: list[tuple], start: int, rows: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The plain logits; where those of the shared way differ, it is not taken again."""
        plain = self.model(pixel_values=pixels).logits
        try:
            equal = torch.allclose(self._run(keys, start, rows, pixels), plain, rtol=1e-2, atol=1e-2)
        except Exception:  # whatever a model makes of a list of blocks that it does not expect
            equal = False
        if not equal:
            self.reason = "the model does more between its blocks than hand hidden states on"
            self.clear()
        self._checked.add(bool(start))
        return plain

    # ------------------------------------------------------------------ what is kept

    def _keep(self, key: tuple, rows: torch.Tensor, hidden: torch.Tensor) -> None:
        state = self._states.get(key) or self._make_room(key, hidden)
        if state is not None:
            state.values[rows] = hidden
            state.known[rows] = True

    def _make_room(self, key: tuple, hidden: torch.Tensor) -> _State | None:
        size = self.images * hidden[0].numel() * hidden.element_size()
        if self._depth is None:
            fitting = self.limit // size
            self._depth = min(len(self._blocks) - 1, max(fitting // SHARERS, fitting > 0))
        if len(key[0]) > self._depth:  # a row up to the block; in the first call, every block shows its output
            return None
        shape, values = (self.images, *hidden.shape[1:]), None
        while self.bytes + size > self.limit:
            _, left = self._states.popitem(last=False)
            self.bytes -= left.size
            if left.values.shape == shape and left.values.dtype == hidden.dtype:
                values = left.values  # new memory would have to be zeroed by the system
        values = _empty(shape, hidden) if values is None else values
        state = self._states[key] = _State(values, torch.zeros(self.images, dtype=torch.bool), size)
        self.bytes += size
        self._new.append(key)
        return state

    def settle(self, useful: bool) -> None:
        """The end of a candidate. What it left is the first to go, unless it may have children."""
        for key in [] if useful else self._new:
            if key in self._states:
                self._states.move_to_end(key, last=False)
        self._new.clear()

    def clear(self) -> None:
        """Let go of all states."""
        self._states.clear()
        self._new.clear()
        self.bytes = 0


@dataclass(frozen=True)
class _State:
    """The output of a block, ``values`` (images, T, D), of which those of the ``known`` images are there; in bytes, ``size``."""

    values: torch.Tensor
    known: torch.Tensor
    size: int


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Memory for a state.

    On a CPU it comes straight from the operating system, which has it back as soon as the state leaves: what `malloc`
    frees between states of other sizes it often cannot use again, and the process would grow beyond the limit.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows has no other kind
    memory = mmap.mmap(-1, math.prod(shape) * like.element_size(), **private)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


class _Kept(nn.Module):
    """In place of blocks whose output is known."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.hidden


class _Tap(nn.Module):
    """Hands on what it gets, and shows it."""

    def __init__(self, show: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.show = show

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        self.show(hidden_states)
        return hidden_states
