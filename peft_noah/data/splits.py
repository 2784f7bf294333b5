"""Train, validation and test split of one task: labels checked, images decoded, one preprocessing for all."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_noah.data.images import ImageSplit
from peft_noah.data.labelled import LabelledSplit
from peft_noah.data.listings import Listing, Listings
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.tokenization import Tokenization

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three splits of one task, of images or texts, with one label per class index and one preprocessing for all.

    Attributes:
        train: images to train supernet and subnets on.
        validation: images to choose architectures with.
        test: images to report accuracy on, once; None: there are none with labels.
        label_names: the name of every class, in the order of class indices.
        preprocessing: how every image was resized, and how it is to be normalised; or how every text became tokens.
        source: where the images come from, in words.
        other_tests: further test sets by name, as domain generalisation has them; each may be scored among fewer
            classes, see `ImageSplit.classes`.
        shared: how many images of validation, test and each further test set are also training images (of test sets:
            training or validation images), byte for byte; splits without any are left out.
        summary: per split, the number of images and classes, the fewest and most images of a class, and what was left
            out of its folders; as `Listings.summary` has it.
        notes: how the splits came about, in sentences.
    """

    train: LabelledSplit
    validation: LabelledSplit
    test: LabelledSplit | None
    label_names: tuple[str, ...]
    preprocessing: Preprocessing | Tokenization
    source: str
    other_tests: Mapping[str, LabelledSplit] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
    summary: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """One of the samples in a word: ``"image"`` or ``"text"``."""
        return self.preprocessing.what

    @property
    def num_classes(self) -> int:
        """Number of classes, no unit."""
        return len(self.label_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over label names and the labels and undecoded images of all splits.

        Further test sets add their name, classes and images; without any it is over the three splits alone, and without
        test images over two.
        """
        digest = hashlib.sha256(repr(self.label_names).encode())
        for split in (self.train, self.validation, self.test):
            if split is not None:
                digest.update(bytes.fromhex(split.fingerprint))
        for name, split in self.other_tests.items():
            digest.update(repr((name, split.classes)).encode())
            digest.update(bytes.fromhex(split.fingerprint))
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a results file: source, sizes, label names, fingerprint and preprocessing.

        Of texts, `what` says so. Further test sets (`other_tests`: size and number of classes), images shared by splits (`shared`) and the
        summary of what was read (`images`) are in it only where there are any. Without labelled test images their
        number is 0.
        """
        data = {
            "source": self.source,
            "sizes": {
                "train": len(self.train),
                "validation": len(self.validation),
                "test": 0 if self.test is None else len(self.test),
            },
            "label_names": list(self.label_names),
            "fingerprint": self.fingerprint,
            "preprocessing": self.preprocessing.to_dict(),
        }
        if self.what != "image":
            data["what"] = self.what
        if self.other_tests:
            data["other_tests"] = {
                name: {
                    "size": len(split),
                    "classes": self.num_classes if split.classes is None else len(split.classes),
                }
                for name, split in self.other_tests.items()
            }
        if self.shared:
            data["shared"] = dict(self.shared)
        if self.summary:
            data["images"] = {name: dict(entry) for name, entry in self.summary.items()}
        return data


def build_splits(
    train: Listing,
    validation: Listing | None,
    test: Listing | None,
    label_names: Sequence[str],
    preprocessing: Preprocessing,
    *,
    source: str,
    other_tests: Mapping[str, Listing] | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_gb: float = 4.0,
) -> Splits:
    """Decode the images of three splits, after checking their labels.

    Args:
        train: undecoded training images.
        validation: undecoded validation images; None splits them off the training images.
        test: undecoded test images; None: there are none with labels.
        label_names: the name of every class, in the order of class indices.
        preprocessing: the run's resize, crop and normalisation.
        source: where the images come from, in words.
        other_tests: undecoded images of further test sets, by name.
        validation_fraction: as in `load_splits`.
        seed: as in `load_splits`.
        cache_gb: as in `load_splits`.

    Raises:
        ValueError: as `load_splits`, for whatever concerns images and labels.
    """
    listings = Listings(train, validation, test, tuple(label_names), source, other_tests or {})
    listings.check()
    return decode_listings(listings.with_validation(validation_fraction, seed), preprocessing, cache_gb)


def decode_listings(listings: Listings, preprocessing: Preprocessing, cache_gb: float = 4.0) -> Splits:
    """Decode complete listings into splits, and log what is in them: what every loader ends with.

    Args:
        listings: checked ones with a validation split.
        preprocessing: the run's resize, crop and normalisation.
        cache_gb: as in `load_splits`.

    Raises:
        ValueError: an image is corrupt, too large or made of floats.
    """
    listings.log_summary()
    listings.warn_of_unseen_classes()
    source = listings.source
    decoded = {}
    for name, listing in listings.by_name().items():
        decoded[name] = ImageSplit.decode(
            listing.images,
            listing.labels,
            preprocessing,
            name=listing.split or name,
            cache_gb=cache_gb,
            classes=listing.classes,
        )
        if decoded[name].in_memory:
            cache_gb -= preprocessing.gigabytes(len(listing))
        else:
            logger.warning("%s: the %s split exceeds cache_gb and is decoded whenever it is fetched", source, name)
    return Splits(
        *(decoded.get(name) for name in ("train", "validation", "test")),
        label_names=listings.label_names,
        preprocessing=preprocessing,
        source=source,
        other_tests={name: decoded[f"test {name}"] for name in listings.other_tests},
        shared=count_shared(decoded, source),
        summary=listings.summary(),
        notes=listings.notes,
    )


def count_shared(splits: Mapping[str, LabelledSplit], source: str, what: str = "image") -> dict[str, int]:
    """How many images (or texts) of each split were trained or selected on; logged once, with all counts."""
    digests = {name: split.digests for name, split in splits.items()}
    fitted = set(digests["train"])
    shared = {"validation": sum(digest in fitted for digest in digests["validation"])}
    fitted.update(digests["validation"])
    for name in list(splits)[2:]:
        shared[name] = sum(digest in fitted for digest in digests[name])
    shared = {name: count for name, count in shared.items() if count}
    if shared:
        counts = ", ".join(f"{count} of {len(digests[name]):,} {name}" for name, count in shared.items())
        logger.warning(
            "%s: %ss that occur in training too, byte for byte (for test sets, in training or validation): %s. "
            "Their accuracy is too high by what the model remembers of them.",
            *(source, what, counts),
        )
    return shared
