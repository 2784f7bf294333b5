"""Ways in which a file can be broken, at random or on purpose: bytes, JSON structure, safetensors and image headers."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import zlib
from collections.abc import Callable

Mutator = Callable[[bytes, random.Random], bytes]

# what JSON text holds in place of a string, since no Python value dumps to it
_RAW = {
    "raw:digits": "9" * 5_000,
    "raw:deep": "[" * 2_000 + "]" * 2_000,
    "raw:deeper": "[" * 100_000,
    "raw:1e999": "1e999",
    "raw:twice": '{"a": 1, "a": 2}',
}
NASTY = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**9, 10**30, -(10**30), 0.5, -0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "x" * 20_000, "\ud800", "a\x00b", "\u202ex", "a|b\n# c"),
    *("../../outside", "/etc/passwd", "NOAH", "LORA", "1", "1e9", "vtab", "default", "self", "__class__"),
    *([], {}, [[]], [None], [[0] * 1_000] * 3, [1, "a"], {"a": 1}, {"lora": [10**9]}, {"lora": [65_536] * 4_096}),
    *_RAW,
)


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut short."""
    return data[: rng.randrange(len(data) + 1)]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A piece is left out, doubled, moved, or overwritten."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + rng.choice((1, 4, 64, 4_096)))
    piece = rng.choice((b"", data[start:end] * 2, b"\x00" * (end - start), b"\xff" * (end - start), rng.randbytes(8)))
    at = rng.choice((start, rng.randrange(len(data) + 1)))
    return data[:at] + piece + data[at if at != start else end :]


def blow_up(data: bytes, rng: random.Random) -> bytes:
    """A number in the text is another."""
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", data))
    if not numbers:
        return flip(data, rng)
    found = rng.choice(numbers)
    number = rng.choice(
        (b"1000000000", b"-1", b"0", b"65536", b"4097", b"1e400", b"NaN", b"9" * 5_000, b"1" * 40, b"0.1")
    )
    return data[: found.start()] + number + data[found.end() :]


def json_structure(data: bytes, rng: random.Random) -> bytes:
    """Values, keys and lists of a JSON text are replaced, left out, doubled or nested; data that is no JSON is flipped."""
    try:
        tree = json.loads(data)
    except ValueError:
        return flip(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _change(tree, rng)
    text = json.dumps(tree)
    for name, raw in _RAW.items() if len(text) < 100_000 else ():
        text = text.replace(f'"{name}"', raw)
    if len(text) > 2_000_000:  # slow, and no harder
        return truncate(data, rng)
    return text.encode("utf-8", "surrogatepass")


def _nasty(rng: random.Random) -> object:
    return copy.deepcopy(rng.choice(NASTY))  # a later change must not change it for the files to come


def _change(tree: object, rng: random.Random) -> object:
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.05:
        return _nasty(rng)
    key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    if isinstance(tree[key], (dict, list)) and tree[key] and rng.random() < 0.7:
        tree[key] = _change(tree[key], rng)
        return tree
    what = rng.randrange(6)
    if what == 0:
        del tree[key]
    elif what == 1 and isinstance(tree, dict):
        tree[rng.choice(("self", "cls", "", "x" * 300, "\ud800", key + "x"))] = tree.pop(key)
    elif what == 1:
        tree[key : key + 1] = [tree[key]] * rng.choice((2, 5_000))
    elif what == 2:
        tree[key] = [tree[key]]
    else:
        tree[key] = _nasty(rng)
    return tree


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """The header's length, or what it says of a tensor, is another."""
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice((0, 1, length + 8, len(data), 2**40, 2**64 - 1))) + data[8:]
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    what = rng.randrange(7)
    if what == 0:
        header[name]["shape"] = rng.choice(([10**9, 10**9], [0], [], [2**63], [-1], "x", [1] * 10_000))
    elif what == 1:
        header[name]["dtype"] = rng.choice(("I64", "BOOL", "F64", "U8", "BF16", "F8_E4M3", "?", 3))
    elif what == 2:
        header[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 4], [-1, 4], [0], "x"))
    elif what == 3:
        header[rng.choice(("x", "../x", "base_model.model.noah_", name + ".more", ""))] = header.pop(name)
    elif what == 4:
        header["__metadata__"] = rng.choice(NASTY)
    elif what == 5:
        header[name] = rng.choice(NASTY)
    else:
        del header[name]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def image_header(data: bytes, rng: random.Random) -> bytes:
    """A byte, or the sizes, in the first bytes of an image are others; a PNG's checksum is mended."""
    if data.startswith(b"\x89PNG") and len(data) > 33 and rng.random() < 0.6:
        sides = [rng.choice((0, 1, 24, 20_000, 10**6, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        rest = bytes((rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 7)), 0, 0, rng.choice((0, 1))))
        header = b"IHDR" + struct.pack(">II", *sides) + rest
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(min(64, len(changed)))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    return bytes(changed)


def footer(data: bytes, rng: random.Random) -> bytes:
    """A few of the last bytes, where parquet keeps its schema, are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        changed[-1 - rng.randrange(min(1_500, len(changed)))] = rng.randrange(256)
    return bytes(changed)


BYTES: tuple[Mutator, ...] = (flip, truncate, splice)
JSON: tuple[Mutator, ...] = (*BYTES, blow_up, *(json_structure,) * 5)
