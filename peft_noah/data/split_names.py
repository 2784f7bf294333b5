"""What the splits of a dataset are called, in the names that circulate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: the names of our splits where nobody names another
DEFAULTS = {"train": "train", "validation": "validation", "test": "test"}
#: names that stand in for ours in any case of letters, the first that is there; `train800` and `val200` are VTAB-1k's
ALIASES = {
    "train": ("train", "training", "train800"),
    "validation": ("validation", "val", "valid", "dev", "val200"),
    "test": ("test", "testing"),
}
#: VTAB-1k's train and validation images together
BOTH = "train800val200"
_VTAB = (BOTH, "train800", "val200")


def is_split_name(name: str) -> bool:
    """Whether a folder or file of this name is taken for a split."""
    return name.lower() in (BOTH, *(alias for aliases in ALIASES.values() for alias in aliases))


def looks_like_training(name: str) -> bool:
    """Whether a folder may be meant as a training split under a name of its own, such as `seg_train` or `training_set`."""
    return re.search(r"(^|[-._ 0-9])train(ing)?([-._ 0-9]|$)", name.lower()) is not None


def looks_like_test(name: str) -> bool:
    """Whether a folder may be meant as the test split under a name of its own, such as `test1` or `test_images`."""
    return re.fullmatch(r"test(ing)?[-._ ]?([0-9]+|set|data|images?|imgs?)?", name.lower()) is not None


def check_names(names: Mapping[str, str | None]) -> None:
    """Refuse to take two splits from one. A default name of the validation split that was given to another counts not.

    Raises:
        ValueError: two of the names are the same.
    """
    given = [name for ours, name in names.items() if name is not None and (ours, name) != ("validation", "validation")]
    if len(set(given)) != len(given):
        raise ValueError(f"the splits {dict(names)} are not three different ones. Test images must not be trained on.")


def pick(available: Mapping[str, Any], names: Mapping[str, str | None], source: object) -> dict[str, Any]:
    """What is available under the names of our splits; validation and test may be missing, unless named on purpose.

    Where VTAB-1k's `train800` or `val200` is missing but `train800val200` is there, that one is the training split, and
    the validation split is to be split off it.

    Raises:
        ValueError: a split that is needed, or was named on purpose, is missing; what there is is named.
    """
    found = {ours: name for ours in names if (name := find_name(available, ours, names)) is not None}
    picked = {ours: available[name] for ours, name in found.items()}
    by_default = names["train"] == "train" and names["validation"] in ("validation", None)
    if by_default and BOTH in available and not {"train", "validation"} <= set(picked):
        picked["train"] = available[BOTH]
        picked.pop("validation", None)
    for ours, theirs in names.items():
        if ours not in picked and (ours == "train" or theirs not in (None, DEFAULTS[ours])):
            raise ValueError(
                f"{source} has no split {theirs!r}; it has {', '.join(sorted(available)) or 'none'}. Add it, or name "
                f"another by {ours}_split."
            )
    return picked


def unread(available: Mapping[str, Any], picked: Mapping[str, Any]) -> list[str]:
    """The names of what is available and was not picked; VTAB-1k's are left out, which hold the same images twice."""
    taken = list(map(id, picked.values()))
    return [name for name, split in available.items() if id(split) not in taken and name.lower() not in _VTAB]


def find_name(available: Mapping[str, Any], ours: str, names: Mapping[str, str | None]) -> str | None:
    """What one of our splits is called in a source: as it was named, else by one of its aliases; None: it is not there.

    A name that was given for another split on purpose stands in for none.
    """
    theirs = names[ours]
    if theirs != DEFAULTS[ours]:
        return theirs if theirs in available else None
    taken = {name for other, name in names.items() if other != ours and name != DEFAULTS[other]}
    for alias in ALIASES[ours]:
        for name in (alias, *available):
            if name in available and name.lower() == alias and name not in taken:
                return name
    return None
