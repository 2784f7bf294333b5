"""Which architectures a search may choose from, as plain data: per prompt module, depths and dims."""

from __future__ import annotations

import random
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from types import MappingProxyType

from peft_noah.architecture import (
    MAX_BLOCKS,
    MAX_DIM,
    MAX_ROWS,
    Architecture,
    check_name,
    check_sequence,
    depth_of,
)
from peft_noah.jsonfile import check_int, check_keys
from peft_noah.plugins import own_dims

#: rows of the paper's spaces
MODULES = ("lora", "adapter", "vpt")
#: rows of `SearchSpace.wide`: those of the MLP, of which every architecture has some, and those that it may leave out
_MLP_ROWS = ("lora_fc1", "lora_fc2")
WIDE = ("lora_query", "lora_key", "lora_value", "lora_output", *_MLP_ROWS, "adapter_plus")


@dataclass(frozen=True, repr=False)
class SearchSpace:
    """All architectures a search may choose from: per prompt module, which depths and which dims.

    A module's row is a depth d out of ``depths``, a dim out of ``dims`` in each of the first d blocks, and 0 behind
    (arXiv 2206.04673). A row whose choices are given block by block, or have a 0 among them, has no depth: each block
    chooses for itself. Immutable and hashable; the order of rows changes neither equality nor a random draw.

    Args:
        num_blocks: blocks of the backbone.
        dims: per prompt module, the dims a carrying block may have (no unit, 1 to 65,536): one sequence for all blocks, or
            one sequence for each. With a 0 among them, a block may also go without.
        depths: per prompt module, how many leading blocks may carry it (0 to ``num_blocks``). A module that is left
            out gets the paper's depths, see :func:`default_depths`.

    Raises:
        ValueError: a dim or depth is out of its bounds, a module has none, ``depths`` names an unknown module or one in which
            each block chooses for itself, or a row has choices for another number of blocks.

    Examples:
        >>> space = SearchSpace.vtab()
        >>> space.depths["lora"], space.dims["lora"]
        ((3, 6, 9, 12), (1, 5, 10))
        >>> space.sample(random.Random(0)) in space
        True
        >>> SearchSpace(3, {"lora": (0, 2, 4), "ssf": [[0], [0], [0, 1]]}).largest()
        Architecture(lora=[4, 4, 4], ssf=[0, 0, 1])
    """

    num_blocks: int
    dims: Mapping[str, tuple[int, ...] | tuple[tuple[int, ...], ...]]
    depths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = check_int(self.num_blocks, "num_blocks", 1, MAX_BLOCKS)
        dims = _check_dims(self.dims, blocks)
        depths = _check_choices(self.depths, "depths", 0, blocks)
        if not dims:
            raise ValueError("a search space needs the dims of at least one prompt module.")
        if unknown := [name for name in depths if name not in dims]:
            raise ValueError(f"depths are given for {', '.join(unknown)}, but dims only for {', '.join(dims)}.")
        every = (blocks,)
        if both := [name for name in depths if _is_by_block(dims[name]) and depths[name] != every]:
            raise ValueError(
                f"row {both[0]!r} has depths, but each of its blocks chooses for itself: its dims have a 0 among them, or stand "
                "block by block. Leave its depths out, or the 0."
            )
        free = {name: every for name in dims if _is_by_block(dims[name])}
        depths = {name: free.get(name) or depths.get(name, default_depths(blocks)) for name in dims}
        object.__setattr__(self, "num_blocks", blocks)
        object.__setattr__(self, "dims", MappingProxyType(dims))
        object.__setattr__(self, "depths", MappingProxyType(depths))

    @classmethod
    def vtab(cls, num_blocks: int = 12, modules: str | Iterable[str] = MODULES) -> SearchSpace:
        """The paper's space for VTAB-1k: dims 1, 5, 10 (arXiv 2206.04673)."""
        return cls._paper(num_blocks, modules, (1, 5, 10))

    @classmethod
    def few_shot(cls, num_blocks: int = 12, modules: str | Iterable[str] = MODULES) -> SearchSpace:
        """The paper's space for few-shot learning and domain generalisation: dims 5, 10, 50, 100 (same source)."""
        return cls._paper(num_blocks, modules, (5, 10, 50, 100))

    @classmethod
    def wide(cls, num_blocks: int = 12, modules: str | Iterable[str] = WIDE) -> SearchSpace:
        """LoRA on each Linear of a block and Adapter+, with dims 1, 2, 4, 8 block by block.

        A row is in all blocks or in none; LoRA on the MLP's two Linears is always there, so that no architecture is empty.
        In a ViT-B/16 an architecture drawn at random has 0.57 M parameters on average, and the paper's budget of 0.64 M
        bounds a search; the largest, which a supernet stores, has 1.66 M. Where modules sit matters more than how their
        dims change from block to block, which is what the paper's spaces are about.

        Args:
            num_blocks: blocks of the backbone.
            modules: rows to choose from; without any of the MLP's, the first one is always there.
        """
        modules = [modules] if isinstance(modules, str) else list(modules)
        always = [name for name in modules if name in _MLP_ROWS] or modules[:1]
        depths = {name: (num_blocks,) if name in always else (0, num_blocks) for name in modules}
        return cls(num_blocks, {name: own_dims(name) or (1, 2, 4, 8) for name in modules}, depths)

    @classmethod
    def _paper(cls, num_blocks: int, modules: str | Iterable[str], dims: tuple[int, ...]) -> SearchSpace:
        modules = [modules] if isinstance(modules, str) else modules
        return cls(num_blocks, {name: own_dims(name) or dims for name in modules})

    def __repr__(self) -> str:
        return f"SearchSpace(num_blocks={self.num_blocks}, dims={dict(self.dims)}, depths={dict(self.depths)})"

    def __hash__(self) -> int:
        return hash((self.num_blocks, frozenset(self.dims.items()), frozenset(self.depths.items())))

    def __reduce__(self) -> tuple[type[SearchSpace], tuple[int, dict, dict]]:
        # A mapping proxy can be neither pickled nor copied.
        return type(self), (self.num_blocks, dict(self.dims), dict(self.depths))

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or architecture.num_blocks != self.num_blocks:
            return False
        same_modules = architecture.keys() == self.dims.keys()
        return same_modules and all(self._allows(name, row) for name, row in architecture.items())

    def _allows(self, name: str, row: tuple[int, ...]) -> bool:
        depth = self.depth(name, row)
        return depth in self.depths[name] and all(dim in self.choices(name, i) for i, dim in enumerate(row[:depth]))

    def choices(self, name: str, block: int) -> tuple[int, ...]:
        """The dims of a module in a block among its first ``depth``, in order; with a 0 where the block may go without.

        Args:
            name: of the module.
            block: index of the block.
        """
        dims = self.dims[name]
        return dims[block] if isinstance(dims[0], tuple) else dims

    def all_dims(self, name: str) -> tuple[int, ...]:
        """Every dim that a block can have of a module, in order; 0 is one of them."""
        return tuple(sorted({0, *(dim for block in range(self.num_blocks) for dim in self.choices(name, block))}))

    def depth(self, name: str, row: Sequence[int]) -> int:
        """The depth of a module's row; the number of blocks where each of them chooses for itself."""
        return self.num_blocks if _is_by_block(self.dims[name]) else depth_of(row)

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture once, in a fixed order. Look at :meth:`size` before asking for all of them."""
        names = self.module_order
        for rows in product(*(self._all_rows(name) for name in names)):
            yield self.build(dict(zip(names, rows, strict=True)))

    @property
    def module_order(self) -> list[str]:
        """The modules in the order in which random draws visit them, whatever order the rows have."""
        # A config file may reorder rows on its way through JSON, and equal spaces must give equal draws.
        return sorted(self.dims)

    def _all_rows(self, name: str) -> list[tuple[int, ...]]:
        return [
            dims + (0,) * (self.num_blocks - depth)
            for depth in self.depths[name]
            for dims in product(*(self.choices(name, block) for block in range(depth)))
        ]

    def build(self, rows: Mapping[str, Sequence[int]]) -> Architecture:
        """The architecture with these rows, in the space's own order of rows."""
        return Architecture({name: rows[name] for name in self.dims})

    def sample(self, rng: random.Random) -> Architecture:
        """A random architecture as the paper draws it: a depth per module uniformly, then a dim per carrying block.

        Args:
            rng: the random generator; it alone decides what comes out.
        """
        rows: dict[str, list[int]] = {}
        for name in self.module_order:
            depth = rng.choice(self.depths[name])
            drawn = [rng.choice(self.choices(name, block)) for block in range(depth)]
            rows[name] = drawn + [0] * (self.num_blocks - depth)
        return self.build(rows)

    def smallest(self) -> Architecture:
        """The architecture with the least depth and the least dim of every module."""
        return self._corner(0)

    def largest(self) -> Architecture:
        """The architecture with the greatest depth and dim of every module: what a supernet stores."""
        return self._corner(-1)

    def _corner(self, end: int) -> Architecture:
        depths = {name: choices[end] for name, choices in self.depths.items()}
        rows = {name: tuple(self.choices(name, block)[end] for block in range(depths[name])) for name in self.dims}
        return Architecture({name: row + (0,) * (self.num_blocks - len(row)) for name, row in rows.items()})

    def size(self) -> int:
        """Exact number of distinct architectures: the product over modules of ``sum(len(dims) ** depth)``; where each block
        chooses for itself, of the product over its blocks."""
        return prod(
            sum(prod(len(self.choices(name, block)) for block in range(depth)) for depth in depths)
            for name, depths in self.depths.items()
        )

    def max_dim(self, name: str) -> int:
        """The greatest dim of a module (no unit): how much of it a supernet stores per block.

        Raises:
            ValueError: the space has no such module.
        """
        if name not in self.dims:
            raise ValueError(f"no module {name!r} in this search space (modules: {', '.join(self.dims)}).")
        return self.all_dims(name)[-1]

    def to_dict(self) -> dict[str, object]:
        """The space as plain ints, lists and dicts, ready for JSON."""
        dims = {
            name: [list(each) if isinstance(each, tuple) else each for each in choices]
            for name, choices in self.dims.items()
        }
        depths = {name: list(choices) for name, choices in self.depths.items()}
        return {"num_blocks": self.num_blocks, "dims": dims, "depths": depths}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> SearchSpace:
        """The space that :meth:`to_dict` describes; raises ValueError for anything else."""
        check_keys(data, ("num_blocks", "dims", "depths"), "a search space")
        return cls(**data)


def default_depths(num_blocks: int) -> tuple[int, ...]:
    """The paper's depths for any backbone: L/4, L/2, 3L/4 and L of its L blocks, i.e. 3, 6, 9, 12 for a ViT-B/16.

    Where L is not a multiple of 4 each is rounded to the nearest whole number, halves up, but to no less than 1;
    repeats are dropped.

    Examples:
        >>> default_depths(12), default_depths(6), default_depths(2)
        ((3, 6, 9, 12), (2, 3, 5, 6), (1, 2))
    """
    return tuple(sorted({max(1, (quarters * num_blocks + 2) // 4) for quarters in (1, 2, 3, 4)}))


#: how the spaces that have a name are made, for a number of blocks and, if asked for, other rows
SPACES = {"vtab": SearchSpace.vtab, "few_shot": SearchSpace.few_shot, "wide": SearchSpace.wide}


def _check_choices(choices: object, what: str, low: int, high: int) -> dict[str, tuple[int, ...]]:
    _check_mapping(choices, what)
    return {name: _check_values(values, f"{what} of {name!r}", low, high) for name, values in choices.items()}


def _check_dims(dims: object, blocks: int) -> dict[str, tuple]:
    """The dims of each row: one tuple for all blocks, or one for each."""
    _check_mapping(dims, "dims")
    checked = {}
    for name, values in dims.items():
        what = f"dims of {name!r}"
        check_sequence(values, what, MAX_DIM)
        if not any(isinstance(each, Sequence) for each in values):
            checked[name] = _check_values(values, what, 0, MAX_DIM)
        elif len(values) != blocks:
            raise ValueError(
                f"{what} are for {len(values)} blocks, but the space is for {blocks}. Give one list a block."
            )
        else:
            by_block = (
                _check_values(each, f"{what} in block {block}", 0, MAX_DIM) for block, each in enumerate(values)
            )
            checked[name] = tuple(by_block)
        if not any(any(each) if isinstance(each, tuple) else each for each in checked[name]):
            raise ValueError(f"{what} are 0 in every block. Leave the row out.")
    return checked


def _check_mapping(choices: object, what: str) -> None:
    if not isinstance(choices, Mapping) or len(choices) > MAX_ROWS:
        raise ValueError(f"{what} is {reprlib.repr(choices)}; give a mapping of at most {MAX_ROWS} modules.")
    for name in choices:
        check_name(name)


def _check_values(values: object, what: str, low: int, high: int) -> tuple[int, ...]:
    check_sequence(values, what, MAX_DIM)
    return tuple(sorted({check_int(value, f"one of the {what}", low, high) for value in values}))


def _is_by_block(dims: tuple) -> bool:
    """Whether each block chooses its dim for itself."""
    return isinstance(dims[0], tuple) or 0 in dims
