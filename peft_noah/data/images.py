"""Labelled images in memory: decoded, turned to RGB and resized once, then fetched batch by batch."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from peft_noah.data.labelled import Prepare, check_classes, classes_of_both
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.stored_images import Encoded, InMemory


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
        self._assemble([InMemory(images)], labels, classes)

    def _assemble(
        self, parts: Sequence[InMemory | Encoded | _Chosen], labels: Tensor, classes: Sequence[int] | None = None
    ) -> None:
        sizes = [len(part) for part in parts]
        if labels.dtype != torch.int64 or labels.shape != (sum(sizes),):
            raise ValueError(
                f"labels of type {labels.dtype} and shape {tuple(labels.shape)} do not fit {sum(sizes)} images: "
                "expected int64, one per image."
            )
        self.classes = check_classes(labels, classes, "image")
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
        encoded = Encoded(images, preprocessing, name)
        fits = preprocessing.gigabytes(len(images)) <= cache_gb
        split = cls.__new__(cls)
        part = encoded.read_all() if fits else encoded.check_all()
        split._assemble([part], torch.tensor(labels, dtype=torch.int64), classes)
        return split

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
        joined = ImageSplit.__new__(ImageSplit)
        labels = torch.cat([self.labels, other.labels])
        joined._assemble([*self._parts, *other._parts], labels, classes_of_both(self, other))
        return joined

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
