"""One task of an experiment as plain data, and the check that a folder holds what the paper says it holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft_noah.data import Listings, read_listings
from peft_noah.experiments.cells import Cell, full_name
from peft_noah.sources import stored_path, stored_paths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What to train on, and how; expected numbers are the paper's Table 4, where it has any.

    Attributes:
        name: in tables and figures.
        dataset: folder or Hub id, as `load_splits` takes it.
        group: the group that the task's accuracy is averaged in; "" for none.
        num_classes: expected number of classes; labels from there on are refused. None: whatever there is.
        other_num_classes: numbers of classes that are accepted too.
        sizes: expected number of images by split (`train`, `validation`, `test`, `test <further test set>`); splits
            that are left out may have any.
        shots: training images per class; None: all.
        other_tests: further test sets by name: folders or Hub ids.
        augment: whether training images are augmented (few-shot and domain generalisation).
        search_space: name of the paper's search space and learning rates, "vtab" or "few_shot".
        lossless: whether the original images are lossless, so that a JPEG copy of them is another task.
        published: name of the authors' architecture for this task, for `Architecture.published`; None: there is none.
    """

    name: str
    dataset: str
    group: str = ""
    num_classes: int | None = None
    other_num_classes: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    shots: int | None = None
    other_tests: Mapping[str, str] = field(default_factory=dict)
    augment: bool = False
    search_space: str = "vtab"
    lossless: bool = False
    published: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", stored_path(self.dataset))
        object.__setattr__(self, "other_tests", stored_paths(self.other_tests))

    @property
    def full_name(self) -> str:
        """Its name with its shots, which no two tasks of a suite share; its folder is called so."""
        return full_name(self.name, self.shots)

    def cell(self, method: str, seed: int) -> Cell:
        """The cell of a suite that runs a method on it."""
        return Cell(self.name, self.group, self.shots, method, seed)

    def listings(self, seed: int = 0, **reading: str) -> Listings:
        """The task's images and labels without decoding any.

        Args:
            seed: of what is drawn.
            **reading: which columns, splits and config: as for `read_listings`.

        Raises:
            ValueError: as `read_listings`.
        """
        return read_listings(
            self.dataset,
            shots=self.shots,
            seed=seed,
            other_tests=self.other_tests,
            num_classes=self.num_classes,
            **reading,
        )

    def check(self, seed: int = 0, **reading: str) -> Listings:
        """Read the listings, and compare number of classes and sizes with the expected ones; nothing is decoded.

        A validation split that had to be split off the training images is counted with them. JPEG copies of lossless
        images are warned of: accuracies on them cannot be compared, those of CIFAR-100 move by ten points.

        Args:
            seed, **reading: as for `listings`.

        Raises:
            ValueError: the data cannot be used, or a number differs; the message names the task and every such number.
        """
        try:
            found = self.listings(seed, **reading)
        except ValueError as error:
            raise ValueError(f"task {self.full_name!r}: {error}") from error
        differing = [
            f"{count:,} {what} where {expected:,} are expected"
            for what, count, expected in self._compare(found)
            if count != expected
        ]
        if differing:
            raise ValueError(
                f"task {self.full_name!r} in {self.dataset} has {'; '.join(differing)}. Get the split that the paper uses, or "
                "run the folder under another name, as a task of your own."
            )
        if self.lossless and found.test is not None and found.test.is_jpeg(0):
            logger.warning(
                "task %r: the images in %s are JPEG, but the originals are lossless; accuracies on this copy cannot be "
                "compared with those on another",
                *(self.name, self.dataset),
            )
        return found

    def _compare(self, found: Listings) -> list[tuple[str, int, int]]:
        pairs = []
        if self.num_classes is not None:
            count = len(found.label_names)
            pairs.append(("classes", count, count if count in self.other_num_classes else self.num_classes))
        sizes, expected = dict(found.sizes), dict(self.sizes)
        if found.validation is not None and found.validation.split is not None and "validation" in expected:
            sizes["train"] += sizes.pop("validation")
            expected["train"] = expected.get("train", 0) + expected.pop("validation")
        return [*pairs, *((f"{name} images", sizes.get(name, 0), size) for name, size in expected.items())]
