"""Settings as earlier versions of this package wrote them."""

from __future__ import annotations

from peft_noah.run.tasks import IMAGES, TASKS

#: options that are gone, each with the value that did nothing: files that hold it can be read
_REMOVED = {"risk": 0.0}
#: options that are gone and changed time and memory alone: a file's values of them mean nothing
_WITHOUT_EFFECT = ("cache_gb", "screen")
#: what a file meant where it does not name an option
_MEANT = {"strategy": "noah"}


def brought_up_to_date(data: dict[str, object]) -> dict[str, object]:
    """The same settings in the options of this version.

    Args:
        data: plain data, as an earlier or this version wrote it.

    Raises:
        ValueError: an option that is gone was in use.
    """
    for name, unused in _REMOVED.items():
        if (value := data.get(name, unused)) != unused:
            raise ValueError(f"{name} is {value!r}: this version has no such option, and reads {unused!r} only.")
    data = {name: value for name, value in data.items() if name not in (*_REMOVED, *_WITHOUT_EFFECT)}
    data = {**_MEANT, **data}
    if "task_name" not in data and data.get("task", IMAGES) not in tuple(TASKS):
        # of a version without texts: what tables call the task
        data["task_name"] = data.pop("task")
    return data
