"""What a run read when it began, and whether a later stage reads the same: its images, labels and backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft_noah.jsonfile import check_keys, dump_json, read_json, write_atomically
from peft_noah.tuner.fingerprint import same_backbone

INPUTS = "inputs.json"
_KEYS = ("data", "backbone")
_SHOWN = 5  # names of classes in a message


def write_inputs(folder: Path, data: Mapping[str, object], backbone: str | None) -> None:
    """Write inputs.json.

    Args:
        folder: of the run.
        data: `Splits.to_dict()`.
        backbone: its fingerprint.
    """
    write_atomically(folder / INPUTS, dump_json({"data": dict(data), "backbone": {"fingerprint": backbone}}))


def check_data(folder: Path, known: Mapping[str, object] | None, found: Mapping[str, object]) -> None:
    """Compare the data at hand with those that a run began with.

    Args:
        folder: of the run.
        known: `Splits.to_dict()` as it was then; None: it was not kept, and nothing is compared.
        found: the same, now.

    Raises:
        ValueError: if they differ; the message says in what.
    """
    changes = [] if known is None else data_changes(known, found)
    if changes:
        raise ValueError(
            f"the data in {found['source']} are no longer those that the run in {folder} began with: {'; '.join(changes)}. "
            "Restore them, or start a new run with another --output."
        )


def check_backbone(folder: Path, known: str | None, found: str | None, name: str) -> None:
    """Compare the fingerprint of the backbone at hand with that of the one that a run began with; None: not known.

    Raises:
        ValueError: if its weights are others.
    """
    if known is not None and found is not None and not same_backbone(known, found):
        raise ValueError(
            f"the weights of {name} are no longer those that the run in {folder} began with. Restore them, or start a new "
            "run with another --output."
        )


def data_changes(known: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """In what two data differ, both as `Splits.to_dict()` tells them, in words."""
    changes, what = class_changes(known["label_names"], found["label_names"]), found.get("what", "image")
    before, after = _sizes(known), _sizes(found)
    for split in dict.fromkeys([*before, *after]):
        if before.get(split, 0) != after.get(split, 0):
            changes.append(
                f"{split} has {_count(after.get(split, 0), what)}, and had {_count(before.get(split, 0), what)}"
            )
    if not changes and known["fingerprint"] != found["fingerprint"]:
        changes.append(f"the same classes with as many {what}s, but other {what}s or labels")
    before, after = _preprocessing(known), _preprocessing(found)
    changes += [
        f"the preprocessing has {name} {after[name]}, and had {before[name]}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
    return changes


def class_changes(known: Sequence[str], found: Sequence[str]) -> list[str]:
    """In what two lists of class names differ, in words."""
    gone = [name for name in known if name not in set(found)]
    new = [name for name in found if name not in set(known)]
    changes = [f"{word} {_names(names)}" for word, names in (("gone:", gone), ("new:", new)) if names]
    if not changes and list(known) != list(found):
        return ["the same classes are in another order"]
    return [f"classes {', '.join(changes)}"] if changes else []


def read_inputs(folder: str | os.PathLike[str]) -> tuple[Mapping[str, object] | None, str | None]:
    """The data and the backbone's fingerprint in inputs.json; None for what is not there.

    Raises:
        ValueError: if the file does not hold them.
    """
    path = Path(folder) / INPUTS
    if not path.exists():
        return None, None
    content = read_json(path)
    check_keys(content, _KEYS, f"{path}")
    data, backbone = content["data"], content["backbone"]
    fingerprint = backbone.get("fingerprint") if isinstance(backbone, Mapping) else 0
    if not is_data(data) or not (fingerprint is None or isinstance(fingerprint, str)):
        raise ValueError(f"{path} does not say what the run read. Start a new run with another --output.")
    return data, fingerprint


def is_data(data: object) -> bool:
    """Whether plain data is what `Splits.to_dict()` tells."""
    if not isinstance(data, Mapping):
        return False
    names, sizes = data.get("label_names"), data.get("sizes")
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    others = data.get("other_tests") or {}
    counted = isinstance(sizes, Mapping) and isinstance(others, Mapping)
    counted = counted and all(isinstance(entry, Mapping) for entry in others.values())
    return listed and counted and isinstance(data.get("fingerprint"), str)


def _sizes(data: Mapping[str, object]) -> dict[str, object]:
    others = data.get("other_tests") or {}
    return {**data["sizes"], **{f"test {name}": entry.get("size") for name, entry in others.items()}}


def _preprocessing(data: Mapping[str, object]) -> dict[str, object]:
    settings = data.get("preprocessing")
    # where the numbers come from is said in words, with a path
    return {name: value for name, value in settings.items() if name != "source"} if settings else {}


def _count(count: object, what: str) -> str:
    return f"no {what}s" if not count else f"1 {what}" if count == 1 else f"{count} {what}s"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
