"""Labelled images in memory: decoded, turned to RGB and resized once, then fetched batch by batch."""

from __future__ import annotations

import bisect
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from peft_noah.data.labelled import Prepare
from peft_noah.data.partial_downloads import POINTER, is_pointer
from peft_noah.data.preprocessing import MAX_PIXELS, Preprocessing

# Pillow also opens formats that start other programs (EPS runs Ghostscript); a photo collection needs none of them.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@cache
def image_extensions() -> frozenset[str]:
    """What the names of image files that can be decoded end in, such as ``".png"``; in small letters."""
    known = PIL.Image.registered_extensions()
    return frozenset(end for end, name in known.items() if name in _FORMATS and name in PIL.Image.OPEN)


def decode_image(encoded: bytes) -> PIL.Image.Image:
    """One RGB image from the bytes of its file, decoded as `datasets` does (EXIF orientation applied).

    Grey images get three equal channels, palettes their colours; 16-bit grey keeps its high byte; an alpha channel is
    dropped, which is what `convert("RGB")` and so transformers and torchvision do. Of an animation, the first frame.

    Args:
        encoded: the content of an image file.

    Raises:
        ValueError: not an image of a known format, cut short, over `MAX_PIXELS`, or with float pixels.
    """
    _check_header(encoded)
    try:
        image = datasets.Image().decode_example({"bytes": encoded, "path": None})
        return _to_rgb(image)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsers do: SyntaxError, struct.error, OSError
        raise ValueError(f"it cannot be decoded ({error})") from error


def _check_header(encoded: bytes) -> tuple[int, int]:
    """Width and height, after refusing what is no image or too large, before any pixel is decoded."""
    if is_pointer(encoded):
        raise ValueError(POINTER)
    PIL.Image.init()
    known = [name for name in _FORMATS if name in PIL.Image.OPEN]
    try:
        with PIL.Image.open(BytesIO(encoded), formats=known) as header:
            width, height = header.size
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"it is too large, a possible decompression bomb ({error})") from error
    except Exception as error:  # as in decode_image
        reason = "" if isinstance(error, PIL.UnidentifiedImageError) else f" ({error})"
        raise ValueError(f"it is no readable image{reason}; allowed are {', '.join(known)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    return width, height


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F":
        raise ValueError(
            "it has floating-point pixels, which have no agreed range and may be NaN; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; its high byte is what other readers show.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"it has integer pixels from {values.min()} to {values.max()}, allowed are 0 to 65535; save it "
                "with 8 or 16 bits"
            )
        image = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency it drops
    return image.convert("RGB")


class ImageSplit(Dataset):
    """Labelled images, resized once and kept as bytes: what a data loader fetches whole batches from.

    Images are uint8, not normalised: a `Normalizer` does that on the device, batch by batch. `a + b` holds the images
    of both without copying them (train + validation, for retraining).

    Args:
        images: uint8 tensor of shape (N, 3, H, W).
        labels: int64 tensor of shape (N,), class indices.
        classes: the class indices among which the images are scored, in rising order; None: all. A test set that has
            200 of 1,000 classes is scored among its 200.

    Raises:
        ValueError: shapes or types are others, the two lengths differ, or a label is not among the classes.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images of type {images.dtype} and shape {tuple(images.shape)} are not allowed: expected uint8 of "
                "shape (N, 3, H, W). Decode them with ImageSplit.decode."
            )
        self._assemble([_InMemory(images)], labels, classes)

    def _assemble(
        self, parts: Sequence[_InMemory | _Encoded | _Chosen], labels: Tensor, classes: Sequence[int] | None = None
    ) -> None:
        sizes = [len(part) for part in parts]
        if labels.dtype != torch.int64 or labels.shape != (sum(sizes),):
            raise ValueError(
                f"labels of type {labels.dtype} and shape {tuple(labels.shape)} do not fit {sum(sizes)} images: "
                "expected int64, one per image."
            )
        self.classes = None if classes is None else tuple(sorted(set(classes)))
        if self.classes is not None and (outside := sorted(set(labels.tolist()) - set(self.classes))):
            raise ValueError(
                f"label {outside[0]} is not among the {len(self.classes)} classes that the images are scored among. "
                "Add it to classes."
            )
        self.labels = labels
        self._parts = tuple(parts)
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]

    @classmethod
    def decode(
        cls,
        images: Sequence[Mapping[str, Any] | None],
        labels: Sequence[int],
        preprocessing: Preprocessing,
        *,
        name: str = "images",
        cache_gb: float = 4.0,
        classes: Sequence[int] | None = None,
    ) -> ImageSplit:
        """Decode and resize images once; where they would not fit in the cache, whenever they are fetched.

        Both ways give the same values. An image decoded later still has its header checked now.

        Args:
            images: undecoded images as `datasets` holds them, `{"bytes": ..., "path": ...}`; where bytes is None the
                file at path is read.
            labels: class index per image.
            preprocessing: the run's resize and crop.
            name: the split's name, for error messages.
            cache_gb: most memory the decoded images may take, in gigabytes (10^9 bytes).
            classes: as for `ImageSplit`.

        Raises:
            ValueError: an image is missing, corrupt, of an unknown format or too large; split and index are named.
        """
        encoded = _Encoded(images, preprocessing, name)
        fits = preprocessing.gigabytes(len(images)) <= cache_gb
        split = cls.__new__(cls)
        part = encoded.read_all() if fits else encoded.check_all()
        split._assemble([part], torch.tensor(labels, dtype=torch.int64), classes)
        return split

    @classmethod
    def concat(cls, splits: Iterable[ImageSplit]) -> ImageSplit:
        """One split with the images of several, in order, scored among the classes of all of them; image memory is
        shared, not copied."""
        splits = list(splits)
        joined = cls.__new__(cls)
        classes = [split.classes for split in splits]
        joined._assemble(
            [part for split in splits for part in split._parts],
            torch.cat([split.labels for split in splits]),
            None if None in classes else [index for of_split in classes for index in of_split],
        )
        return joined

    def subset(self, rows: Sequence[int]) -> ImageSplit:
        """A split of the images at ``rows``, in that order, scored among the same classes; image memory is shared where it
        can be.

        Args:
            rows: indices from 0 to N - 1.
        """
        chosen = ImageSplit.__new__(ImageSplit)
        index = torch.as_tensor(rows, dtype=torch.int64)
        chosen._assemble([_Chosen(self, index)], self.labels[index], self.classes)
        return chosen

    def __add__(self, other: ImageSplit) -> ImageSplit:
        return ImageSplit.concat([self, other])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image, uint8 of shape (3, H, W), as `pixel_values`, and its label, int64 scalar, as `labels`."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a split of {len(self)} images")
        batch = self.__getitems__([index % len(self)])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch at once, which torch's data loader asks for where a dataset offers it.

        Args:
            indices: B indices from 0 to N - 1.

        Returns:
            `pixel_values`, uint8 of shape (B, 3, H, W), and `labels`, int64 of shape (B,).
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if len(self._parts) == 1:
            return {"pixel_values": self._parts[0].take(rows), "labels": self.labels[rows]}
        owners = torch.tensor([bisect.bisect_right(self._starts, row) - 1 for row in rows.tolist()])
        pixel_values = torch.empty((len(rows), *self.image_shape), dtype=torch.uint8)
        for owner in owners.unique().tolist():
            mine = owners == owner
            pixel_values[mine] = self._parts[owner].take(rows[mine] - self._starts[owner])
        return {"pixel_values": pixel_values, "labels": self.labels[rows]}

    @staticmethod
    def inputs(batch: Mapping[str, Tensor], prepare: Prepare | None = None) -> dict[str, Tensor]:
        """What a model is called with for a batch: `pixel_values`.

        Args:
            batch: as `__getitems__` gives it.
            prepare: from uint8 pixels (B, 3, H, W) to the backbone's input, as a `Normalizer`; None: pixels as they are.
        """
        pixels = batch["pixel_values"]
        return {"pixel_values": pixels if prepare is None else prepare(pixels)}

    def on(self, device: torch.device) -> ImageSplit:
        """The same images in a device's own memory, if it has some and they take at most a quarter of what is free there;
        else this split. Batches come from where the images are."""
        if device.type != "cuda" or not self.in_memory:
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if len(self) * math.prod(self.image_shape) > free / 4:
            return self
        pixels = torch.empty((len(self), *self.image_shape), dtype=torch.uint8, device=device)
        for start, part in zip(self._starts, self._parts, strict=True):
            pixels[start : start + len(part)] = part.pixels
        return ImageSplit(pixels, self.labels, self.classes)

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `collate_fn` for a data loader: batches come ready from `__getitems__`."""
        return batch

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (3, H, W) of every image, in channels and pixels."""
        return self._parts[0].image_shape

    @property
    def in_memory(self) -> bool:
        """Whether every image is decoded and kept, rather than decoded whenever it is fetched."""
        return all(part.in_memory for part in self._parts)

    @property
    def digests(self) -> list[bytes]:
        """SHA-256 of the file of every image; empty where images were given as pixels."""
        return [digest for part in self._parts for digest in part.digests]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over labels and undecoded images: the same at every image size."""
        digest = hashlib.sha256(self.labels.contiguous().numpy().tobytes())
        for part in self._parts:
            digest.update(part.digest)
        return digest.hexdigest()


class _InMemory:
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


class _Chosen:
    """Some images of a split, fetched from it whenever they are needed."""

    def __init__(self, whole: ImageSplit, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        return self.whole.in_memory

    @property
    def pixels(self) -> Tensor:
        return self.take(torch.arange(len(self)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.whole.image_shape

    @property
    def digests(self) -> list[bytes]:
        known = self.whole.digests
        return [known[row] for row in self.rows.tolist()] if known else []

    @property
    def digest(self) -> bytes:
        rows = hashlib.sha256(self.rows.contiguous().numpy().tobytes())
        rows.update(bytes.fromhex(self.whole.fingerprint))
        return rows.digest()

    def take(self, rows: Tensor) -> Tensor:
        return self.whole.__getitems__(self.rows[rows].tolist())["pixel_values"]


class _Encoded:
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

    def read_all(self) -> _InMemory:
        pixels = torch.empty((len(self), *self.image_shape), dtype=torch.uint8)
        for row in range(len(self)):
            encoded = self._read(row)
            self.digests.append(hashlib.sha256(encoded).digest())
            pixels[row] = self._decode(row, encoded)
        return _InMemory(pixels, self.digests)

    def check_all(self) -> _Encoded:
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
        self.preprocessing.check_size(*_check_header(encoded))

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
