"""Where an `ImageSplit` has its images from: memory, or files that are decoded when they are fetched.

Each kind has ``len``, `image_shape` (3, H, W), `digests` (SHA-256 of each file, where there are files), `digest` (one over
all), `in_memory`, and `take`: the images at some rows, uint8 of shape (B, 3, H, W).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from peft_noah.data.decoding import check_header, decode_image
from peft_noah.data.preprocessing import Preprocessing


class InMemory:
    """Decoded images, with the digests of what they were decoded from (one over the pixels, if that is unknown)."""

    in_memory = True

    def __init__(self, pixels: Tensor, digests: Sequence[bytes] = ()) -> None:
        self.pixels = pixels
        self.digests = digests

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    @property
    def digest(self) -> bytes:
        content = b"".join(self.digests) if self.digests else self.pixels.contiguous().numpy()
        return hashlib.sha256(content).digest()

    def take(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


class Encoded:
    """Undecoded images, with all that is needed to decode any of them and to say which one is broken."""

    in_memory = False

    def __init__(self, records: Sequence[Mapping[str, Any] | None], preprocessing: Preprocessing, name: str) -> None:
        self.records = records
        self.preprocessing = preprocessing
        self.name = name
        self.digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self.records)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, *self.preprocessing.size)

    def take(self, rows: Tensor) -> Tensor:
        return torch.stack([self._decode(row, self._read(row)) for row in rows.tolist()])

    def read_all(self) -> InMemory:
        pixels = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)
        for row in range(len(self)):
            encoded = self._read(row)
            self.digests.append(hashlib.sha256(encoded).digest())
            pixels[row] = self._decode(row, encoded)
        return InMemory(pixels, self.digests)

    def check_all(self) -> Encoded:
        for row in range(len(self)):
            encoded = self._read(row)
            self.digests.append(hashlib.sha256(encoded).digest())
            self._located(row, self._check, encoded)
        return self

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()

    def _decode(self, row: int, encoded: bytes) -> Tensor:
        return self._located(row, lambda: self.preprocessing.apply(decode_image(encoded)))

    def _check(self, encoded: bytes) -> None:
        self.preprocessing.check_size(*check_header(encoded))

    def _read(self, row: int) -> bytes:
        return self._located(row, _read_bytes, self.records[row])

    def _located(self, row: int, function: Any, *arguments: Any) -> Any:
        """Call a function whose ValueError says what is wrong with an image, and add which image it is."""
        try:
            return function(*arguments)
        except ValueError as error:
            path = (self.records[row] or {}).get("path")
            # Images chosen out of a split keep the number they have in the file.
            index = self.records.indices[row] if isinstance(self.records, Subset) else row
            where = f"image {index} of split {self.name!r}" + (f" ({path})" if path else "")
            raise ValueError(f"{where} cannot be used: {error}. Repair or remove it.") from error


def _read_bytes(image: Mapping[str, Any] | None) -> bytes:
    if image is None or (image["bytes"] is None and image["path"] is None):
        raise ValueError("it is missing (null)")
    if image["bytes"] is not None:
        return image["bytes"]
    # isfile keeps a path in a downloaded table from opening a device or a pipe, or reaching for the network.
    if not os.path.isfile(image["path"]):
        raise ValueError("there is no such file")
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise ValueError(f"its file cannot be read ({error})") from error
