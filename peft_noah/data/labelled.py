"""What training, scoring and evaluation ask of labelled samples, whatever they are made of: images, or texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

#: what turns the stored values of a batch into the backbone's input, such as a `Normalizer`; None: nothing needs to
Prepare = Callable[[Tensor], Tensor]


class LabelledSplit(Protocol):
    """Labelled samples of one split, fetched batch by batch: an `ImageSplit` or a `TextSplit`.

    Attributes:
        labels: int64 tensor of shape (N,), class indices.
        classes: the class indices among which the samples are scored, in rising order; None: all.
        fingerprint: SHA-256, in hexadecimal, over labels and samples.
    """

    labels: Tensor
    classes: tuple[int, ...] | None
    fingerprint: str

    def __len__(self) -> int:
        """Number of samples."""

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A whole batch at once: `labels`, int64 of shape (B,), and what `inputs` needs, each with B rows."""

    def inputs(self, batch: Mapping[str, Tensor], prepare: Prepare | None = None) -> dict[str, Tensor]:
        """The keyword arguments with which a model computes the logits of a batch.

        Args:
            batch: as `__getitems__` gives it, on any device.
            prepare: what the stored values go through first; None where they are the input already.
        """

    def collate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The `collate_fn` for a data loader."""

    def on(self, device: torch.device) -> LabelledSplit:
        """The same samples where batches are best fetched from for this device."""

    def subset(self, rows: Sequence[int]) -> LabelledSplit:
        """A split of the samples at ``rows``, in that order, scored among the same classes."""

    def __add__(self, other: Any) -> LabelledSplit:
        """The samples of both, in order."""


def check_classes(labels: Tensor, classes: Sequence[int] | None, what: str) -> tuple[int, ...] | None:
    """The classes among which a split is scored, in rising order; None: all.

    Args:
        labels: (N,), class indices.
        classes: as given, in any order.
        what: one of the samples in a word.

    Raises:
        ValueError: a label is not among them.
    """
    if classes is None:
        return None
    chosen = tuple(sorted(set(classes)))
    if outside := sorted(set(labels.tolist()) - set(chosen)):
        raise ValueError(
            f"label {outside[0]} is not among the {len(chosen)} classes that the {what}s are scored among. Add it to classes."
        )
    return chosen


def classes_of_both(first: LabelledSplit, second: LabelledSplit) -> tuple[int, ...] | None:
    """The classes among which the samples of two splits are scored together; None: all."""
    if first.classes is None or second.classes is None:
        return None
    return (*first.classes, *second.classes)
