"""Designs of a user's own, as JSON files: read and checked before anything is built, kept in settings by their content."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence

from peft_noah.jsonfile import load_json
from peft_noah.run.names import slug
from peft_noah.run.options import read_names
from peft_noah.searching.design import Design
from peft_noah.tuner.recipes import RECIPES

#: options of `NoahConfig` that a design may set, besides those of its recipes
PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def read_designs(paths: Sequence[str], name: str = "design") -> tuple[dict[str, object], ...] | None:
    """The designs in JSON files, as plain data; None for no file.

    Raises:
        ValueError: a file cannot be read, or holds no design; the message names it.
    """
    return tuple(load_json(path, check_design, "a design").to_dict() for path in paths) or None


def read_methods(text: str | None, name: str) -> tuple[str | dict[str, object], ...] | None:
    """Methods from a text like ``linear,lora,mine.json``: names, and designs as plain data; ``none`` for none.

    Raises:
        ValueError: as `read_designs`.
    """
    if text is None:
        return None
    return tuple(read_designs([one])[0] if one.endswith(".json") else one for one in read_names(text, name))


def check_design(data: object) -> Design:
    """The design that plain data describes, if its rows and options are such as a model can be given.

    Raises:
        ValueError: says what is wrong, and what is allowed.
    """
    from peft_noah.tuner.config import NoahConfig
    from peft_noah.tuner.prompts import check_row

    design = Design.from_dict(data)
    try:
        design = Design.from_dict(json.loads(json.dumps(design.to_dict())))  # lists, not tuples: as it is read back
    except TypeError as error:
        raise ValueError(f"the options of design {design.name!r} are no plain data: {error}.") from error
    if not slug(design.name):
        raise ValueError(f"a design is named {design.name!r}; give a name with letters or digits, for its files.")
    for row, dims in design.dims.items():
        check_row(row, dims if isinstance(dims, int) else max(dims))
    allowed = (*PLACES, *RECIPES["paper"])
    if unknown := [name for name in design.options if name not in allowed]:
        raise ValueError(
            f"option {reprlib.repr(unknown[0])} of design {design.name!r} is not known (known: {', '.join(allowed)})."
        )
    blocks = max((len(dims) for dims in design.dims.values() if not isinstance(dims, int)), default=1)
    NoahConfig(architecture=design.architecture(blocks), **design.options)
    return design


def check_distinct(designs: Iterable[Design]) -> tuple[Design, ...]:
    """The designs, if their files can be told apart.

    Raises:
        ValueError: names one that has another's name, as far as names of files go.
    """
    seen: dict[str, str] = {}
    designs = tuple(designs)
    for design in designs:
        if slug(design.name) in seen:
            raise ValueError(
                f"designs {seen[slug(design.name)]!r} and {design.name!r} would have the same files. Name them differently."
            )
        seen[slug(design.name)] = design.name
    return designs


def designs_among(entries: Iterable[str | Mapping[str, object]]) -> tuple[Design, ...]:
    """Those of some methods that are designs, checked.

    Raises:
        ValueError: as `check_design` and `check_distinct`.
    """
    return check_distinct(check_design(entry) for entry in entries if not isinstance(entry, str))
