"""What the splits of a dataset are called, in the names that circulate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: names that stand in for ours, the first that is there; `train800` and `val200` are VTAB-1k's
ALIASES = {
    "train": ("train", "train800"),
    "validation": ("validation", "val", "valid", "dev", "val200"),
    "test": ("test",),
}
#: VTAB-1k's train and validation images together
BOTH = "train800val200"


def check_names(names: Mapping[str, str | None]) -> None:
    """Refuse to take two splits from one.

    Raises:
        ValueError: two of the names are the same.
    """
    if len(set(names.values())) != 3:
        raise ValueError(f"the splits {dict(names)} are not three different ones. Test images must not be trained on.")


def pick(available: Mapping[str, Any], names: Mapping[str, str | None], source: object) -> dict[str, Any]:
    """What is available under the names of our splits; validation alone may be missing, unless named on purpose.

    Where VTAB-1k's `train800` or `val200` is missing but `train800val200` is there, that one is the training split, and
    the validation split is to be split off it.

    Raises:
        ValueError: a split that is needed, or was named on purpose, is missing; what there is is named.
    """
    picked = {}
    for ours, theirs in names.items():
        aliases = ALIASES[ours] if theirs == ours else (theirs,)
        found = [alias for alias in aliases if alias in available]
        if found:
            picked[ours] = available[found[0]]
    by_default = names["train"] == "train" and names["validation"] in ("validation", None)
    if by_default and BOTH in available and not {"train", "validation"} <= set(picked):
        picked["train"] = available[BOTH]
        picked.pop("validation", None)
    for ours, theirs in names.items():
        if ours not in picked and theirs not in (None, "validation"):
            raise ValueError(
                f"{source} has no split {theirs!r}; it has {', '.join(sorted(available)) or 'none'}. Add it, or name "
                f"another by {ours}_split."
            )
    return picked
