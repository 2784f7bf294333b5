"""Splits before decoding: which images and which labels, checked, completed and drawn from, without reading a pixel."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import Subset

from peft_noah.data.class_names import twins
from peft_noah.jsonfile import MAX_COUNT, check_int

logger = logging.getLogger(__name__)

#: share of all samples that a source without splits gives to its test split
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Listing:
    """The images of one split before decoding, and their labels.

    Attributes:
        images: N undecoded images, `{"bytes": ..., "path": ...}`; where bytes is None the file at path is read. Or N texts.
        labels: N class indices.
        classes: the class indices that occur at all, where a test set has fewer classes than the training images and is
            scored among them; None: all classes.
        split: name of the split in the source that the images were taken out of, for error messages; None: its own.
    """

    images: Sequence[Mapping[str, Any] | None]
    labels: Sequence[int | None]
    classes: tuple[int, ...] | None = None
    split: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def is_jpeg(self, row: int) -> bool:
        """Whether the image at `row` is a JPEG file, by its first bytes."""
        image = self.images[row] or {}
        if image.get("bytes") is not None:
            return image["bytes"][:2] == b"\xff\xd8"
        if not os.path.isfile(image.get("path") or ""):
            return False
        with open(image["path"], "rb") as file:
            return file.read(2) == b"\xff\xd8"

    def take(self, rows: Sequence[int], split: str | None = None) -> Listing:
        """The images at `rows`; they keep the numbers that they have in the source, for error messages."""
        whole, indices = self.images, rows
        if isinstance(whole, Subset):
            whole, indices = whole.dataset, [whole.indices[row] for row in rows]
        labels = [self.labels[row] for row in rows]
        return replace(self, images=Subset(whole, list(indices)), labels=labels, split=self.split or split)


@dataclass(frozen=True)
class Listings:
    """The listings of one task.

    Attributes:
        train: images to train on.
        validation: images to choose architectures with; None: the source has none.
        test: images to report accuracy on; None: there are none with labels.
        label_names: the name of every class, in the order of class indices.
        source: where the images come from, in words.
        other_tests: further test sets by name, as domain generalisation has them.
        unsplit: whether the source has no splits, so that a test split is to be drawn too.
        left_out: number of files that were not read, by split and reason.
        notes: how the splits came about, in sentences without a full stop, to stand below a run's results.
        what: one of the samples, in a word: image, or text.
    """

    train: Listing
    validation: Listing | None
    test: Listing | None
    label_names: tuple[str, ...]
    source: str
    other_tests: Mapping[str, Listing] = field(default_factory=dict)
    unsplit: bool = False
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    what: str = "image"

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""
        return {name: len(listing) for name, listing in self.by_name().items()}

    def by_name(self) -> dict[str, Listing]:
        """Every listing that is there, train, validation and test first, each further test set as `test <name>`."""
        own = {"train": self.train, "validation": self.validation, "test": self.test}
        others = {f"test {name}": listing for name, listing in self.other_tests.items()}
        return {name: listing for name, listing in {**own, **others}.items() if listing is not None}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Per split: number of classes that have images, least and most images of one, and what was left out.

        Plain data for a results file. A split is in it if it has images or lost some.
        """
        listings = self.by_name()
        found: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys((*listings, *self.left_out)):
            entry: dict[str, Any] = {}
            if name in listings:
                counts = Counter(listings[name].labels).values()
                entry = {f"{self.what}s": len(listings[name]), "classes": len(counts)}
                entry |= {"fewest per class": min(counts), "most per class": max(counts)}
            found[name] = {**entry, **{f"left out: {why}": n for why, n in self.left_out.get(name, {}).items()}}
        return {name: entry for name, entry in found.items() if entry}

    def log_summary(self) -> None:
        """Log `summary`, a line per split, and the notes."""
        for name, entry in self.summary().items():
            logger.info(
                "%s: %s: %s", self.source, name, ", ".join(f"{count:,} {what}" for what, count in entry.items())
            )
        for note in self.notes:
            logger.warning("%s: %s", self.source, note)

    def check(self) -> None:
        """Check labels and classes.

        Raises:
            ValueError: a split is empty, a label is missing or out of range, or there is one class only.
        """
        for name, listing in self.by_name().items():
            _check_labels(name, listing.labels, self.label_names, self.source, self.what)
        if len(set(self.train.labels)) < 2:
            raise ValueError(
                f"the training {self.what}s of {self.source} have one class only, "
                f"{self.label_names[self.train.labels[0]]!r}: a classifier needs two or more. Check the label column "
                "or the class folders."
            )

    def warn_of_unseen_classes(self) -> None:
        """Log, per split, how many of its classes have no training image, and how many training classes it lacks."""
        seen = set(self.train.labels)
        for name, listing in self.by_name().items():
            if unseen := sorted(set(listing.labels) - seen):
                logger.warning(
                    "%s: %d classes of the %s split have no training %s (%s)",
                    *(self.source, len(unseen), name, self.what, self._named(unseen)),
                )
            if listing.classes is None and (lacking := sorted(seen - set(listing.labels))):
                logger.warning(
                    "%s: %d classes of the training %ss have no %s in the %s split (%s)",
                    *(self.source, len(lacking), self.what, self.what, name, self._named(lacking)),
                )

    def _named(self, labels: Sequence[int]) -> str:
        return ", ".join(self.label_names[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")

    def without_unlabelled(self) -> Listings:
        """The same, without a validation or test split whose labels are all missing or -1, as competitions withhold them."""
        withheld = {
            name: listing
            for name in ("validation", "test")
            if (listing := getattr(self, name)) is not None and listing.labels and set(listing.labels) <= {None, -1}
        }
        notes = [
            f"the labels of all {len(listing):,} {name} {self.what}s are missing or -1"
            for name, listing in withheld.items()
        ]
        return replace(self, **dict.fromkeys(withheld), notes=(*self.notes, *notes))

    def noting_twins(self) -> Listings:
        """The same; where names of classes are all but the same, the notes say so."""
        notes = [
            f"the classes {' and '.join(map(repr, names))} differ in case, spaces or the coding of accents only"
            for names in twins(self.label_names)
        ]
        return replace(self, notes=(*self.notes, *notes))

    def noting_no_test(self) -> Listings:
        """The same; where there is no test split, the notes say what follows from it."""
        note = f"there are no labelled test {self.what}s, so there is no test accuracy"
        return self if self.test is not None else replace(self, notes=(*self.notes, note))

    def as_unsplit(self) -> Listings:
        """The same, where what is called the training images is all that the source has."""
        return replace(self, train=replace(self.train, split="all"), unsplit=True)

    def completed(self, validation_fraction: float, seed: int, shots: int | None) -> Listings:
        """The same, checked, with all splits that are to be drawn, and what is to be noted of them.

        Args:
            validation_fraction: as of `with_validation`.
            seed: of all that is drawn.
            shots: training images per class to draw; None: they stay as they are.

        Raises:
            ValueError: as `check` and `with_test`.
        """
        labelled = self.without_unlabelled()
        labelled.check()
        listings = labelled.with_test(TEST_FRACTION, seed)
        if shots is not None:
            listings = listings.with_shots(shots, seed)
        return listings.with_validation(validation_fraction, seed).noting_twins().noting_no_test()

    def with_test(self, fraction: float = 0.2, seed: int = 0) -> Listings:
        """The same, with a test split drawn from all images where the source has no splits: of every class the share
        `fraction`, rounded, at least one where it has two or more.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or there is one image per class.
        """
        if self.test is not None or not self.unsplit:
            return self
        train, test = self._split_off("test", fraction, seed)
        return replace(self._noting("test", test, seed), train=train, test=test)

    def with_validation(self, fraction: float = 0.2, seed: int = 0) -> Listings:
        """The same, with a validation split split off the training images where there was none: of every class the
        share `fraction`, rounded, at least one, and at least one stays.

        Raises:
            ValueError: `fraction` is not between 0 and 1, or there is one training image per class.
        """
        if self.validation is not None:
            return self
        train, validation = self._split_off("validation", fraction, seed)
        return replace(self._noting("validation", validation, seed), train=train, validation=validation)

    def _noting(self, split: str, drawn: Listing, seed: int) -> Listings:
        note = (
            f"no {split} split; {len(drawn):,} of {len(self.train):,} {'' if split == 'test' else 'training '}{self.what}s "
            f"were split off, class by class, with seed {seed}"
        )
        return replace(self, notes=(*self.notes, note))

    def _split_off(self, split: str, fraction: float, seed: int) -> tuple[Listing, Listing]:
        """The training images without a stratified share of them, and that share."""
        if not 0 < fraction < 1:
            raise ValueError(f"{split}_fraction {fraction} is not allowed: give a share between 0 and 1.")
        rng, chosen = random.Random(seed), set()
        for rows in _by_class(self.train.labels).values():
            chosen.update(rng.sample(rows, min(max(round(fraction * len(rows)), 1), len(rows) - 1)))
        if not chosen:
            raise ValueError(
                f"{self.source} has no {split} split and one training {self.what} per class, so none can be split off. "
                f"Add a {split} split."
            )
        kept = [row for row in range(len(self.train)) if row not in chosen]
        return self.train.take(kept, "train"), self.train.take(sorted(chosen), "train")

    def with_shots(self, shots: int, seed: int = 0) -> Listings:
        """The same, with `shots` training images per class, drawn with `seed`; validation and test stay as they are.

        Where there is no validation split, min(shots, 4) further images per class become it, which is CoOp's rule.
        A class with fewer images gives all it has, and a warning counts such classes.
        """
        rng, train, validation, short = random.Random(seed), [], [], 0
        for rows in _by_class(self.train.labels).values():
            drawn = rng.sample(rows, min(len(rows), shots + min(shots, 4)))
            train += drawn[:shots]
            validation += drawn[shots:]
            short += len(rows) < shots
        if short:
            logger.warning(
                "%s: %d classes have fewer than %d training %ss; all they have are used",
                *(self.source, short, shots, self.what),
            )
        changes: dict[str, Any] = {"train": self.train.take(sorted(train), "train")}
        if self.validation is None and validation:
            note = f"no validation split; {len(validation):,} of the training {self.what}s that are not among the {shots} shots serve as one"
            changes |= {"validation": self.train.take(sorted(validation), "train"), "notes": (*self.notes, note)}
        return replace(self, **changes)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """The rows of every class, classes in order."""
    rows = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    return dict(sorted(rows.items()))


def _check_labels(name: str, labels: Sequence[int | None], label_names: Sequence[str], source: str, what: str) -> None:
    if not labels:
        raise ValueError(f"the {name} split of {source} is empty. Give at least one labelled {what}.")
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < len(label_names):
            hints = {-1: " (-1 usually marks labels that are withheld)", None: " (an empty cell, NA or null in a CSV)"}
            raise ValueError(
                f"{what} {index} of the {name} split of {source}, counted from 0, has the label {label}{hints.get(label, '')}: allowed are 0 to "
                f"{len(label_names) - 1}. Repair the label, or choose another split or label column."
            )


def check_shots(shots: int | None) -> None:
    """Refuse a number of training images per class below 1.

    Raises:
        ValueError: `shots` is no whole number from 1.
    """
    if shots is not None:
        check_int(shots, "shots", 1, MAX_COUNT)
