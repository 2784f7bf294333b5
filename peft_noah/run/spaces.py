"""The search space of a run as a user names it: by name, by its rows, or as a JSON file of their own.

The file holds what `SearchSpace` takes, as a JSON object: ``dims`` by row, for all blocks or for each, and if need be
``depths`` and ``num_blocks``:

    {"dims": {"lora": [2, 4, 8], "ssf": [0, 1], "adapter": [[0], [0], [0, 8], [8, 16]]}, "depths": {"lora": [2, 4]}}
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping

from peft_noah.architecture import MAX_BLOCKS
from peft_noah.jsonfile import check_int, check_keys, load_json
from peft_noah.search_space import SPACES, SearchSpace

_KEYS = ("num_blocks", "dims", "depths")


def read_space(text: str, name: str) -> str | Mapping[str, object]:
    """A search space as it is typed: its name, or what its JSON file holds.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names it.
    """
    return load_json(text, _checked, "a search space") if text.endswith(".json") else text


def _checked(data: object) -> Mapping[str, object]:
    check_space(data, None)
    return data


def check_space(space: object, modules: Iterable[str] | None) -> None:
    """Refuse a search space that is not known, or has rows that no prompt module has.

    Args:
        space: a name, or plain data as of `SearchSpace.to_dict`, of which ``num_blocks`` and ``depths`` may be left out.
        modules: rows of a named space; None: its own.

    Raises:
        ValueError: says which is wrong, and what is allowed.
    """
    from peft_noah.tuner.prompts import check_row

    if isinstance(space, str):
        if space not in SPACES:
            raise ValueError(
                f"search_space must be one of {', '.join(SPACES)}, or a JSON file, got {reprlib.repr(space)}."
            )
    elif modules is not None:
        raise ValueError(
            "modules are the rows of a named search space, and the one in a file has its own: leave one out."
        )
    if not isinstance(space, str):
        _build(space, _num_blocks(space))
        for row, dims in space["dims"].items():
            check_row(row, max(max(each) if isinstance(each, (list, tuple)) else each for each in dims))
    modules = list(modules or ())
    for row in modules:
        check_row(row, 1)
        if modules.count(row) > 1:
            raise ValueError(f"row {row!r} stands twice in modules.")


def build_space(
    space: str | Mapping[str, object], modules: Iterable[str] | None, num_blocks: int
) -> str | SearchSpace:
    """The search space for a backbone of ``num_blocks`` blocks; arguments as of `check_space`.

    Raises:
        ValueError: it is for another number of blocks.
    """
    if not isinstance(space, str):
        return _build(space, num_blocks)
    return space if modules is None else SPACES[space](num_blocks, modules=modules)


def _build(data: object, num_blocks: int) -> SearchSpace:
    check_keys(
        {"num_blocks": num_blocks, "depths": {}, **data} if isinstance(data, Mapping) else data,
        _KEYS,
        "a search space",
    )
    if data.get("num_blocks", num_blocks) != num_blocks:
        raise ValueError(
            f"the search space is for {data['num_blocks']} blocks, but this backbone has {num_blocks}. Leave num_blocks out, or "
            "give a space for this backbone."
        )
    return SearchSpace(**{**data, "num_blocks": num_blocks})


def _num_blocks(data: object) -> int:
    """For how many blocks a space is, as far as it says; else the fewest that it could be for."""
    if not isinstance(data, Mapping):
        return 1
    if "num_blocks" in data:
        return check_int(data["num_blocks"], "num_blocks", 1, MAX_BLOCKS)
    dims, depths = (data.get(key) if isinstance(data.get(key), Mapping) else {} for key in ("dims", "depths"))
    by_block = [
        len(row) for row in dims.values() if isinstance(row, list) and any(isinstance(each, list) for each in row)
    ]
    listed = [depth for row in depths.values() if isinstance(row, list) for depth in row if isinstance(depth, int)]
    return min(MAX_BLOCKS, max([1, *(by_block or listed)]))
