"""A design: what is put into a frozen backbone, where, how strong, and how its training starts. Plain data, no torch."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import check_keys, check_number, dump_json, load_json, write_atomically

_KEYS = ("name", "dims", "options", "head_start", "prior")


@dataclass(frozen=True)
class Design:
    """A way to make a backbone trainable.

    Args:
        name: what tables and logs call it.
        dims: by row of the architecture, one dim for all blocks or one dim per block.
        options: of `NoahConfig`, as plain data: ``target_modules``, ``lora_scale``, ``drop_path`` and so on.
        head_start: whether the classifier is fitted in closed form before anything is trained.
        prior: how far its accuracy is expected to lie above the default design's before any image of the task was seen:
            a difference of two shares of images, so 0.01 is a point.

    Raises:
        ValueError: on an entry that cannot be.

    Examples:
        >>> Design("all", {"lora": 2}, {"target_modules": "all-linear"}).architecture(3)
        Architecture(lora=[2, 2, 2])
    """

    name: str
    dims: Mapping[str, int | Sequence[int]]
    options: Mapping[str, object] = field(default_factory=dict)
    head_start: bool = False
    prior: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100:
            raise ValueError(f"a design's name is {reprlib.repr(self.name)}; give 1 to 100 letters.")
        if not isinstance(self.dims, Mapping) or not isinstance(self.options, Mapping):
            raise ValueError(f"design {self.name!r}: dims and options are mappings.")
        if not isinstance(self.head_start, bool):
            raise ValueError(
                f"design {self.name!r}: head_start is {reprlib.repr(self.head_start)}; give true or false."
            )
        check_number(self.prior, f"the prior of design {self.name!r}", -1, 1)
        for row, dim in self.dims.items():
            if not isinstance(dim, (int, list, tuple)):
                raise ValueError(
                    f"design {self.name!r} has {reprlib.repr(dim)} in row {reprlib.repr(row)}; give one whole number for all blocks, or a list "
                    "with one for each."
                )
        dims = {row: dim if isinstance(dim, int) else tuple(dim) for row, dim in self.dims.items()}
        object.__setattr__(self, "dims", MappingProxyType(dims))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        self.architecture(max((len(dim) for dim in dims.values() if not isinstance(dim, int)), default=1))

    def __reduce__(self) -> tuple[type[Design], tuple[object, ...]]:
        # a mapping proxy can be neither pickled nor copied
        return type(self), (self.name, dict(self.dims), dict(self.options), self.head_start, self.prior)

    def architecture(self, num_blocks: int) -> Architecture:
        """Its dims in a backbone of ``num_blocks`` blocks.

        Raises:
            ValueError: a row gives one dim per block of another backbone.
        """
        rows = {row: [dim] * num_blocks if isinstance(dim, int) else list(dim) for row, dim in self.dims.items()}
        for row, dims in rows.items():
            if len(dims) != num_blocks:
                raise ValueError(
                    f"design {self.name!r} has {len(dims)} dims in row {row!r}, but this backbone has {num_blocks} blocks. Give "
                    "one dim for all blocks, or one per block."
                )
        return Architecture(rows)

    def to_dict(self) -> dict[str, object]:
        """The design as plain data, ready for JSON."""
        dims = {row: dim if isinstance(dim, int) else list(dim) for row, dim in self.dims.items()}
        return {
            "name": self.name,
            "dims": dims,
            "options": dict(self.options),
            "head_start": self.head_start,
            "prior": self.prior,
        }

    @classmethod
    def from_dict(cls, data: object) -> Design:
        """The design that :meth:`to_dict` describes; ``options``, ``head_start`` and ``prior`` may be left out.

        Raises:
            ValueError: an entry is unknown or cannot be.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a design is a mapping with {', '.join(_KEYS)}, not {reprlib.repr(data)}.")
        check_keys({"options": {}, "head_start": False, "prior": 0.0, **data}, _KEYS, "a design")
        return cls(**data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the design to a JSON file, all of it or nothing."""
        write_atomically(path, dump_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Design:
        """Read what :meth:`save` wrote, or a person.

        Raises:
            ValueError: the file cannot be read, or describes something else; the message names it.
        """
        return load_json(path, cls.from_dict, "a design")
