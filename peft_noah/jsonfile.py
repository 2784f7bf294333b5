"""Plain data in JSON files: written whole or not at all, read with bounds, every fault one ValueError.

Files may come from a stranger or from a run that was killed, so nothing is trusted: the size is looked at before
anything is read, and a check names what was found and what is allowed.
"""

from __future__ import annotations

import json
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import uuid4

T = TypeVar("T")

MAX_FILE_BYTES = 32 * 1024**2
MAX_TEXT = 10_000
#: the greatest count that is read or given
MAX_COUNT = 2**63 - 1


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


def check_number(
    value: object,
    what: str,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """``value`` as a plain float.

    Args:
        value: a finite number (a NumPy number too); bools are refused.
        what: its name in the message.
        low, high: the least and the greatest value allowed.
        above, below: bounds that are not allowed themselves.

    Raises:
        ValueError: it is no number, or out of bounds.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < MAX_COUNT
    too_low = is_number and ((low is not None and value < low) or (above is not None and value <= above))
    too_high = is_number and ((high is not None and value > high) or (below is not None and value >= below))
    if not is_number or too_low or too_high:
        limits = ((low, "of at least"), (above, "above"), (high, "at most"), (below, "below"))
        allowed = " and ".join(f"{words} {limit:,}" for limit, words in limits if limit is not None)
        raise ValueError(f"{what} is {reprlib.repr(value)}; give a finite number {allowed}".rstrip() + ".")
    return float(value)


def check_share(value: object, what: str) -> float:
    """``value`` as a plain float from 0 to 1, such as an accuracy.

    Raises:
        ValueError: it is no number, or out of bounds.
    """
    try:
        return check_number(value, what, 0, 1)
    except ValueError:
        raise ValueError(f"{what} is {reprlib.repr(value)}; give a share from 0 to 1, not percent.") from None


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


def check_fields(instance: object) -> None:
    """Check that every field of a dataclass holds what its annotation says, where a file may have filled it.

    Known are None, bool, int, float, str, ``tuple[X, ...]`` (a list will do) and ``Mapping[X, Y]``, and unions of them.
    Floats are finite, integers have at most 64 bits and texts at most 10,000 letters.

    Raises:
        ValueError: a field holds something else; the message names it.
    """
    for name, kind in get_type_hints(type(instance)).items():
        if not _is_kind(value := getattr(instance, name), kind):
            expected = getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind)
            allowed = (expected or str(kind)).replace("typing.", "")
            if kind in (float, float | None) and isinstance(value, (int, float)) and not isinstance(value, bool):
                allowed = "a finite number"
            elif kind in (int, int | None) and isinstance(value, int) and not isinstance(value, bool):
                allowed = f"a whole number of at most {MAX_COUNT:,}"
            elif "float" in allowed:
                allowed = f"{allowed}, of finite numbers"
            raise ValueError(f"{name} is {reprlib.repr(value)}; expected {allowed}.")


def _is_kind(value: object, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_kind(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_is_kind(one, inner[0]) for one in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _is_kind(key, inner[0]) and _is_kind(one, inner[1]) for key, one in value.items()
        )
    if kind is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if kind in (int, float):
        is_number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return is_number and abs(value) < 2**63
    return isinstance(value, kind)


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
    """The data in a JSON text, read to the letter of RFC 8259, so that two readers cannot see different things in it.

    Raises:
        ValueError: the text is too long, cut short, nested too deeply, no UTF-8 or no JSON; a key stands twice in one
            object; a number is NaN, infinite or has thousands of digits.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{what} has more than {MAX_FILE_BYTES:,} bytes, and no file of this kind is that long.")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON ({error}). Was it cut short? Write it anew.") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {reprlib.repr(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {reprlib.repr(digits)} is too large")
    return number


def read_json(path: str | os.PathLike[str]) -> object:
    """The data in a JSON file of at most 32 MiB.

    Raises:
        ValueError: the file cannot be read, or :func:`parse_json` refuses what it holds; the message names the file.
    """
    path = os.path.expanduser(path)
    # to open a pipe would wait for whoever writes into it
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"cannot read {os.fspath(path)}: it is no regular file.")
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {os.fspath(path)}: {error.strerror}.") from error
    return parse_json(text, os.fspath(path))


def load_json(path: str | os.PathLike[str], build: Callable[[Any], T], what: str) -> T:
    """What ``build`` makes of the data in a JSON file.

    Args:
        path: the file.
        build: makes an object of the data, and raises ValueError where it cannot.
        what: the object in words, for the message.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names the file.
    """
    return build_named(read_json(path), build, os.fspath(path), what)


def build_named(data: object, build: Callable[[Any], T], where: str, what: str) -> T:
    """What ``build`` makes of some data; see :func:`load_json`.

    Raises:
        ValueError: it cannot; the message says where the data stands.
    """
    try:
        return build(data)
    except ValueError as error:
        raise ValueError(f"{where} does not hold {what}: {error}") from error


def make_plain_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder inside a run folder, unless it is there; a link there is refused, whatever it leads to.

    Run folders are copied from machine to machine, and what is written into one must stay in it.

    Raises:
        ValueError: the path is a symbolic link.
        OSError: the folder cannot be made.
    """
    path = Path(path)
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Refuse to write into a link inside a run folder.

    Raises:
        ValueError: the path is a symbolic link.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through one. Remove the link, or copy its target.")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that, whatever happens, ``path`` holds either all of it or what it held before.

    A symbolic link at ``path`` is replaced; what it leads to is left alone.

    Raises:
        OSError: the folder does not exist, cannot be written, or is full.
    """
    path = Path(path).expanduser()
    draft = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
