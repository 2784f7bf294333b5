"""Shared prefixes: a block's output depends only on the choices up to this block, so related candidates share it.

    embeddings -> block 0 -> block 1 -> ... -> block n - 1 -> norm -> classifier
              kept       kept       kept

The model itself runs. The last hidden state that is kept stands in for the embeddings, and for the blocks before it.
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
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.prompts import find_prompt_module

SHARERS = 10  # candidates whose prefixes must fit beside each other: the parents


class PrefixCache:
    """Hidden states of images behind leading blocks, by the choices in these blocks; the least recently used leave.

    The first call of each kind is compared with a plain one. Where they differ, the model does more between its blocks
    than hand hidden states on, and nothing is shared.

    Args:
        model: a `PeftModel` with a NOAH adapter on a transformers classifier. Its weights must not change meanwhile.
        images: how many there are; each has a number.
        limit_gb: most memory the states may take, in gigabytes (10^9 bytes).

    Attributes:
        reason: why nothing is kept, so that `logits` is a plain call; None where prefixes are shared.
        bytes: memory that the states take now.
        blocks_run, blocks_shared: blocks times images that were computed, and that were not, so far.
    """

    def __init__(self, model: nn.Module, images: int, limit_gb: float) -> None:
        self.model, self.images, self.limit = model, images, int(limit_gb * 1e9)
        self.bytes = self.blocks_run = self.blocks_shared = 0
        self._states: OrderedDict[tuple, _State] = OrderedDict()
        self._depth: int | None = None  # the last block whose input is kept; known once there is one
        self._keeps_embeddings = False
        self._new: list[tuple] = []
        self._checked: set[int | None] = set()
        self.reason = self._find_blocks()

    def _find_blocks(self) -> str | None:
        root = next((module for module in self.model.modules() if isinstance(module, PreTrainedModel)), None)
        backbone = BACKBONES.get(getattr(getattr(root, "config", None), "model_type", None))
        if not self.limit or backbone is None:
            return "no memory is allowed for it" if backbone else "the model's blocks are not known"
        names, embeddings = backbone.block_names(root), backbone.embeddings_name(root)
        parent, _, self._name = names[0].rpartition(".")[0].rpartition(".")
        self._parent = root.get_submodule(parent)
        self._blocks = getattr(self._parent, self._name)
        if not isinstance(self._blocks, nn.ModuleList) or len(names) != len(self._blocks):
            return "the model's blocks are not in one list"
        self._embeddings = None if embeddings is None else root.get_submodule(embeddings)
        if self._embeddings is None or "forward" in self._embeddings.__dict__:
            return "the model's embeddings are not known, or have a forward of their own"
        config = self.model.peft_config[self.model.active_adapter]
        self._runs_on = [row for row in sorted(config.architecture) if find_prompt_module(row).runs_on(config)]
        return None

    # ------------------------------------------------------------------ running the model

    def logits(self, architecture: Architecture, images: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of the active subnet, which is ``architecture``, on ``pixels`` of these images."""
        if self.reason is not None:
            return self.model(pixel_values=pixels).logits
        keys, rows = self._keys(architecture), torch.tensor(images)
        start = self._shared(keys, rows)
        kind = start and 1  # nothing, the embeddings, blocks
        if kind not in self._checked:
            return self._check(keys, start, rows, pixels, kind)
        self.blocks_shared += (start or 0) * len(images)
        self.blocks_run += (len(self._blocks) - (start or 0)) * len(images)
        return self._run(keys, start, rows, pixels)

    def _keys(self, architecture: Architecture) -> list[tuple]:
        """For each block the choices that its input depends on; the first block's input depends on none."""
        count, rows = len(self._blocks), [architecture[name] for name in sorted(architecture)]
        keys = [tuple(row[:end] for row in rows) for end in range(count)]
        for row in self._runs_on:  # what leaves a block depends on whether the next one has some of its own
            dims = architecture.get(row, (0,) * count)
            keys = [(*key, end > 0 and dims[end] == 0) for end, key in enumerate(keys)]
        return keys

    def _shared(self, keys: list[tuple], rows: torch.Tensor) -> int | None:
        """How many leading blocks need not run; None: no state is there, and the embeddings run too.

        The states up to there count as used.
        """
        start = None
        for block, key in enumerate(keys if self._depth is None else keys[: self._depth + 1]):
            if key in self._states and self._states[key].known[rows].all():
                start = block
        used = keys[: 0 if start is None else start + 1]
        for key in reversed(used):  # the first ones last, for they are shared most
            if key in self._states:
                self._states.move_to_end(key)
        return start

    def _run(self, keys: list[tuple], start: int | None, rows: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        path: list[nn.Module] = []
        for block in range(start or 0, len(self._blocks)):
            if (start is None or block > start) and (self._depth is None or block <= self._depth):
                path.append(_Tap(partial(self._keep, keys[block], rows)))
            path.append(self._blocks[block])
        if start is not None:
            values = self._states[keys[start]].values
            hidden = values.index_select(0, rows.to(values.device))
            self._embeddings.forward = lambda *args, **kwargs: hidden
        setattr(self._parent, self._name, nn.ModuleList(path))
        try:
            return self.model(pixel_values=pixels).logits
        finally:
            setattr(self._parent, self._name, self._blocks)
            self._embeddings.__dict__.pop("forward", None)

    def _check(
        self, keys: list[tuple], start: int | None, rows: torch.Tensor, pixels: torch.Tensor, kind: int | None
    ) -> torch.Tensor:
        """The plain logits; nothing is shared any more if the logits of the shared way differ from them."""
        plain = self.model(pixel_values=pixels).logits
        try:
            equal = torch.allclose(self._run(keys, start, rows, pixels), plain, rtol=1e-2, atol=1e-2)
        except Exception:  # whatever a model makes of a list of blocks that it does not expect
            equal = False
        if not equal:
            self.reason = "the model does more between its blocks than hand hidden states on"
            self.clear()
        self._checked.add(kind)
        return plain

    # ------------------------------------------------------------------ what is kept

    def _keep(self, key: tuple, rows: torch.Tensor, hidden: torch.Tensor) -> None:
        state = self._states.get(key) or self._make_room(key, hidden)
        if state is not None:
            state.values.index_copy_(0, rows.to(hidden.device), hidden)
            state.known[rows] = True

    def _make_room(self, key: tuple, hidden: torch.Tensor) -> _State | None:
        shape = (self.images, *hidden.shape[1:])
        size, memory = math.prod(shape) * hidden.element_size(), None
        if self._depth is None:
            fitting = self.limit // size
            self._depth = min(len(self._blocks) - 1, max(fitting // SHARERS, fitting > 0))
            self._keeps_embeddings = fitting > SHARERS
        depth = len(key[0])
        if depth > self._depth or not (depth or self._keeps_embeddings):  # the first call tells of every block
            return None
        while memory is None and self.bytes + size > self.limit:
            _, left = self._states.popitem(last=False)
            self.bytes -= left.memory.nbytes
            if left.memory.nbytes >= size and left.values.device == hidden.device:
                memory = left.memory  # new memory would have to be zeroed by the system
        memory = _empty(size, hidden.device) if memory is None else memory
        values = memory[:size].view(hidden.dtype).view(shape)
        state = self._states[key] = _State(values, torch.zeros(self.images, dtype=torch.bool), memory)
        self.bytes += memory.nbytes
        self._new.append(key)
        return state

    def end_candidate(self, may_have_children: bool) -> None:
        """Close a candidate. The states that it left are the first to go, unless it may have children."""
        if not may_have_children:
            for key in self._new:
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
    """The input of a block, ``values`` (images, T, D), of which those of the ``known`` images are there, in its ``memory``."""

    values: torch.Tensor
    known: torch.Tensor
    memory: torch.Tensor


def _empty(size: int, device: torch.device) -> torch.Tensor:
    """So many bytes for a state.

    On a CPU they come straight from the operating system, which has them back as soon as nothing uses them: what `malloc`
    frees between states of other sizes it often cannot use again, and the process would grow beyond the limit.
    """
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows has no other kind
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.uint8)


class _Tap(nn.Module):
    """Hands on what it gets, and shows it."""

    def __init__(self, show: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.show = show

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        self.show(hidden_states)
        return hidden_states
