"""Which block of a ViT carries how much of which prompt module, as plain data: no tensor is touched here.

An architecture is one row of dims per prompt module, one dim per block. Rows are keyed by name and nothing here knows what
a name stands for, so that a new prompt module needs no change. Files are read with bounds, because an architecture may come
from a stranger.
"""

from __future__ import annotations

import difflib
import os
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from peft_noah.jsonfile import check_int, dump_json, load_json, parse_json, read_json, write_atomically

MAX_DIM = 65_536
MAX_BLOCKS = 4_096
MAX_ROWS = 64
MAX_NAME = 64


class Architecture(Mapping[str, tuple[int, ...]]):
    """How much of each prompt module every block of a backbone carries: a rank, width or token count, block by block.

    Immutable and hashable. Rows keep their order, equality ignores it. A dim of 0 means that the block does not carry
    the module.

    Args:
        rows: one sequence of dims per prompt module, one dim (no unit, 0 to 65,536) per block.
        **named: the same as keyword arguments.

    Raises:
        ValueError: no rows, rows of unequal length, or a dim that is not a whole number within the bounds.

    Examples:
        >>> architecture = Architecture(lora=[8, 4, 0], adapter=[0, 0, 2])
        >>> architecture["lora"], architecture.depth("lora"), architecture.num_blocks
        ((8, 4, 0), 2, 3)
    """

    __slots__ = ("_hash", "_rows")

    def __init__(self, rows: Mapping[str, Sequence[int]] | None = None, /, **named: Sequence[int]) -> None:
        if rows is not None and not isinstance(rows, Mapping):
            raise ValueError(f"an architecture is a mapping of rows of dims, not {reprlib.repr(rows)}.")
        checked = _check_rows({**(rows or {}), **named})
        object.__setattr__(self, "_rows", checked)
        object.__setattr__(self, "_hash", hash(frozenset(checked.items())))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an architecture cannot be changed (setting {name!r}); build a new one.")

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self._rows == other._rows if isinstance(other, Architecture) else NotImplemented

    def __repr__(self) -> str:
        return f"Architecture({', '.join(f'{name}={list(row)}' for name, row in self.items())})"

    def __reduce__(self) -> tuple[type[Architecture], tuple[dict[str, list[int]]]]:
        return type(self), (self.to_dict(),)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the backbone this architecture is for."""
        return len(next(iter(self._rows.values())))

    def depth(self, name: str) -> int:
        """Number of leading blocks up to the last one that carries a module; 0 where none does.

        Raises:
            ValueError: no row has this name.
        """
        if name not in self._rows:
            raise ValueError(f"no row {name!r} in this architecture (rows: {', '.join(self)}).")
        return depth_of(self._rows[name])

    def to_dict(self) -> dict[str, list[int]]:
        """The rows as plain lists, ready for JSON."""
        return {name: list(row) for name, row in self.items()}

    @classmethod
    def from_dict(cls, rows: Mapping[str, Sequence[int]]) -> Architecture:
        """The architecture that :meth:`to_dict` describes; raises ValueError as the class does."""
        return cls(rows)

    def to_json(self) -> str:
        """The rows as JSON text, one row a line."""
        return dump_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The architecture in a JSON text.

        Raises:
            ValueError: the text is cut short, is no JSON, or describes something else.
        """
        return cls(parse_json(text, "this text"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rows to a JSON file, all of them or none."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Architecture:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file cannot be read, is cut short, or describes something else; the message names it.
        """
        return load_json(path, cls, "an architecture")

    @classmethod
    def uniform(cls, num_blocks: int, **dims: int) -> Architecture:
        """The same dim in every block: how LoRA, Adapter and VPT are used by hand.

        Raises:
            ValueError: ``num_blocks`` or a dim is no whole number within the bounds, or no dim is given.

        Examples:
            >>> Architecture.uniform(3, lora=8)
            Architecture(lora=[8, 8, 8])
        """
        num_blocks = check_int(num_blocks, "num_blocks", 1, MAX_BLOCKS)
        return cls({name: (dim,) * num_blocks for name, dim in dims.items()})

    @classmethod
    def published(cls, name: str) -> Architecture:
        """One of the 45 architectures that the NOAH authors published, for a ViT-B/16 of 12 blocks.

        Source: the code released with arXiv 2206.04673. Two of them repeat one row under two names, which a random
        search would not do; they are given with a warning.

        Args:
            name: ``"vtab/<task>"`` or ``"few_shot/<dataset>_<shots>"``; :meth:`published_names` lists them.

        Raises:
            ValueError: no such name; the message gives the nearest ones.
        """
        released = _released()
        if name not in released["subnets"]:
            near = difflib.get_close_matches(str(name), released["subnets"], n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(
                f"no published architecture is named {reprlib.repr(name)}. {hint}"
                f"Architecture.published_names() lists all {len(released['subnets'])}."
            )
        if name in released["suspect"]:
            warnings.warn(f"published architecture {name!r}: {released['suspect'][name]}", UserWarning, stacklevel=2)
        return cls(released["subnets"][name])

    @staticmethod
    def published_names() -> tuple[str, ...]:
        """The names that :meth:`published` knows, VTAB-1k first."""
        return tuple(_released()["subnets"])


def depth_of(row: Sequence[int]) -> int:
    """Number of leading blocks up to the last one whose dim is not 0."""
    return max((block for block, dim in enumerate(row, start=1) if dim), default=0)


def check_name(name: object) -> None:
    """Raise ValueError where something cannot be the name of a row."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > MAX_NAME:
        raise ValueError(f"row name {reprlib.repr(name)} is not a plain word of at most {MAX_NAME} letters.")


def check_sequence(values: object, what: str, longest: int) -> None:
    """Raise ValueError where something is no list of 1 to ``longest`` entries."""
    # The length is known before a single element is looked at: a hostile row is refused without being copied.
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise ValueError(f"{what} is {reprlib.repr(values)}; give a list of whole numbers.")
    if not 1 <= len(values) <= longest:
        raise ValueError(f"{what} has {len(values):,} entries; give 1 to {longest:,}.")


def _check_rows(rows: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError(f"an architecture has 1 to {MAX_ROWS} rows of dims; this one has {len(rows):,}.")
    first, checked = next(iter(rows)), {}
    for name, row in rows.items():
        check_name(name)
        check_sequence(row, f"row {name!r}", MAX_BLOCKS)
        if len(row) != len(rows[first]):
            raise ValueError(
                f"row {name!r} has {len(row)} dims but row {first!r} has {len(rows[first])}. "
                "Give one dim per block, 0 where the module is absent."
            )
        checked[name] = tuple(
            check_int(dim, f"the dim of row {name!r} in block {block}", 0, MAX_DIM) for block, dim in enumerate(row)
        )
    return checked


@cache
def _released() -> dict[str, dict]:
    return read_json(Path(__file__).parent / "assets" / "released_subnets.json")
