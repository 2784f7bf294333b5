"""Plain data in JSON files: written whole or not at all, read with bounds, every fault one ValueError.

Files may come from a stranger or from a run that was killed, so nothing is trusted: the size is looked at before
anything is read, and a check names what was found and what is allowed.
"""

from __future__ import annotations

import json
import operator
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

MAX_FILE_BYTES = 32 * 1024**2


def check_int(value: object, what: str, low: int, high: int) -> int:
    """``value`` as a plain int.

    Args:
        value: an int or what stands for one (a NumPy integer); bools and floats are refused.
        what: its name in the message.
        low, high: the least and the greatest value allowed.

    Raises:
        ValueError: it is no whole number, or out of bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{what} is {reprlib.repr(value)}; give a whole number from {low:,} to {high:,}.")
    return int(number)


def check_keys(data: object, keys: Sequence[str], what: str) -> None:
    """Check that ``data`` is a mapping with exactly these keys.

    Raises:
        ValueError: it is not; the message names the missing and the unknown keys.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} is a mapping with {', '.join(keys)}, not {reprlib.repr(data)}.")
    missing = [key for key in keys if key not in data]
    unknown = [key for key in data if key not in keys]
    if missing or unknown:
        found = [f"misses {', '.join(missing)}"] if missing else []
        found += [f"has unknown {reprlib.repr(unknown)}"] if unknown else []
        raise ValueError(f"{what} has {', '.join(keys)}; this one {' and '.join(found)}.")


def dump_json(data: Mapping[str, object]) -> str:
    """JSON text with one key a line, and one element a line in a list of mappings: short, and readable in a diff.

    Raises:
        ValueError: a value is NaN or infinite.
        TypeError: a value is not plain data.
    """
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_dump_value(value)}" for key, value in data.items()) + "\n}\n"


def _dump_value(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(element, Mapping) for element in value):
        return "[\n    " + ",\n    ".join(json.dumps(element, allow_nan=False) for element in value) + "\n  ]"
    return json.dumps(value, allow_nan=False)


def parse_json(text: str | bytes, what: str) -> object:
    """The data in a JSON text.

    Raises:
        ValueError: the text is too long, cut short, nested too deeply, or no JSON.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{what} has more than {MAX_FILE_BYTES:,} bytes, and no file of this kind is that long.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON ({error}). Was it cut short? Write it anew.") from error


def read_json(path: str | os.PathLike[str]) -> object:
    """The data in a JSON file of at most 32 MiB.

    Raises:
        ValueError: the file cannot be read, or :func:`parse_json` refuses what it holds; the message names the file.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {os.fspath(path)}: {error.strerror}.") from error
    return parse_json(text, os.fspath(path))


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that, whatever happens, ``path`` holds either all of it or what it held before.

    Raises:
        OSError: the folder does not exist, cannot be written, or is full.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
