"""Train, validation and test split of one task: labels checked, images decoded, one preprocessing for all."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

from peft_noah.images import ImageSplit
from peft_noah.preprocessing import Preprocessing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three splits of one task, with one label per class index and one preprocessing for all.

    Attributes:
        train: images to train supernet and subnets on.
        validation: images to choose architectures with.
        test: images to report accuracy on, once.
        label_names: the name of every class, in the order of class indices.
        preprocessing: how every image was resized, and how it is to be normalised.
        source: where the images come from, in words.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    source: str

    @property
    def num_classes(self) -> int:
        """Number of classes, no unit."""
        return len(self.label_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over label names and the labels and undecoded images of all three splits."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(bytes.fromhex(split.fingerprint))
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file: source, sizes, label names, fingerprint and preprocessing."""
        return {
            "source": self.source,
            "sizes": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
            "label_names": list(self.label_names),
            "fingerprint": self.fingerprint,
            "preprocessing": self.preprocessing.to_dict(),
        }


@dataclass(frozen=True)
class Listing:
    """The images of one split before decoding, and their labels.

    Attributes:
        images: N undecoded images, `{"bytes": ..., "path": ...}`; where bytes is None the file at path is read.
        labels: N class indices.
    """

    images: Sequence[Mapping[str, Any] | None]
    labels: Sequence[int | None]


def build_splits(
    train: Listing,
    validation: Listing | None,
    test: Listing,
    label_names: Sequence[str],
    preprocessing: Preprocessing,
    *,
    source: str,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_gb: float = 4.0,
) -> Splits:
    """Decode three listings into splits, after checking their labels: what every loader ends with.

    Args:
        train: undecoded training images.
        validation: undecoded validation images; None splits them off the training images.
        test: undecoded test images.
        label_names: the name of every class, in the order of class indices.
        preprocessing: the run's resize, crop and normalisation.
        source: where the images come from, in words.
        validation_fraction: as in `load_splits`.
        seed: as in `load_splits`.
        cache_gb: as in `load_splits`.

    Raises:
        ValueError: as `load_splits`, for whatever concerns images and labels.
    """
    listings = {"train": train, "validation": validation, "test": test}
    for name, listing in listings.items():
        if listing is not None:
            _check_labels(name, listing.labels, label_names, source)
    if len(set(train.labels)) < 2:
        raise ValueError(
            f"the training images of {source} have one class only, {label_names[train.labels[0]]!r}: a classifier "
            "needs two or more. Check the label column or the class folders."
        )
    if validation is None:
        listings["train"], listings["validation"] = _split_off_validation(train, validation_fraction, seed, source)
    for name in ("validation", "test"):
        unseen = sorted(set(listings[name].labels) - set(listings["train"].labels))
        if unseen:
            shown = ", ".join(label_names[label] for label in unseen[:5])
            logger.warning(
                "%s: %d classes of the %s split have no training image (%s)", source, len(unseen), name, shown
            )
    decoded = {}
    for name, listing in listings.items():
        file = "train" if name == "validation" and validation is None else name
        decoded[name] = ImageSplit.decode(listing.images, listing.labels, preprocessing, name=file, cache_gb=cache_gb)
        if decoded[name].in_memory:
            cache_gb -= preprocessing.gigabytes(len(listing.images))
        else:
            logger.warning("%s: the %s split exceeds cache_gb and is decoded whenever it is fetched", source, name)
    return Splits(**decoded, label_names=tuple(label_names), preprocessing=preprocessing, source=source)


def _check_labels(name: str, labels: Sequence[int | None], label_names: Sequence[str], source: str) -> None:
    if not labels:
        raise ValueError(f"the {name} split of {source} is empty. Give at least one labelled image.")
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < len(label_names):
            hint = " (-1 usually marks labels that are withheld)" if label == -1 else ""
            raise ValueError(
                f"image {index} of the {name} split of {source} has the label {label}{hint}: allowed are 0 to "
                f"{len(label_names) - 1}. Repair the label, or choose another split or label column."
            )


def _split_off_validation(train: Listing, fraction: float, seed: int, source: str) -> tuple[Listing, Listing]:
    """Training and validation images: of every class the share `fraction`, rounded, but one of each at least stays."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction {fraction} is not allowed: give a share between 0 and 1.")
    members = defaultdict(list)
    for index, label in enumerate(train.labels):
        members[label].append(index)
    rng = random.Random(seed)
    chosen: set[int] = set()
    for label in sorted(members):
        count = min(max(round(fraction * len(members[label])), 1), len(members[label]) - 1)
        chosen.update(rng.sample(members[label], count))
    if not chosen:
        raise ValueError(
            f"{source} has no validation split and one training image per class, so none can be split off. Add a "
            "validation split."
        )
    kept = [index for index in range(len(train.labels)) if index not in chosen]
    logger.warning(
        "%s: no validation split; %d of %d training images were split off, class by class, with seed %d",
        *(source, len(chosen), len(train.labels), seed),
    )
    return tuple(
        Listing(Subset(train.images, rows), [train.labels[row] for row in rows]) for rows in (kept, sorted(chosen))
    )
