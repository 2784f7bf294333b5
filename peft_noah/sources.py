"""What a user's text names: a folder on this machine, or an id on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text looks like ``owner/name`` and is no folder or file here; nothing else is asked of the Hub."""
    return _HUB_ID.fullmatch(text) is not None and not os.path.exists(text)


def check_given(source: str | os.PathLike[str], what: str) -> None:
    """Refuse an empty text, which would be the working folder.

    Raises:
        ValueError: names ``what`` the source is of.
    """
    if not os.fspath(source).strip():
        raise ValueError(f"the source of {what} is empty. Give a folder, or a Hub id.")


def stored_path(text: str | os.PathLike[str]) -> str:
    """A source as it is stored: a folder or file that exists by its absolute path, anything else as it was given.

    ``~`` is expanded, ``imgs/`` and ``./imgs`` are ``imgs``, and a stage that is started in another working folder reads
    the same.
    """
    path = os.path.expanduser(text)
    return os.path.abspath(path) if os.path.exists(path) else os.fspath(text)


def find_source(text: str | os.PathLike[str], what: str, advice: str) -> str:
    """The absolute path of a folder that exists, or a Hub id.

    Args:
        text: what a user gave.
        what: its name in the message, such as ``"model"``.
        advice: what to give instead, a sentence.

    Raises:
        ValueError: if the text is neither.
    """
    found = stored_path(text)
    if os.path.isdir(found) or is_hub_id(found):
        return found
    raise ValueError(f"{what} folder {os.fspath(text)!r} does not exist, and it is no Hub id (owner/name). {advice}")


def stored_paths(sources: Mapping[str, str]) -> dict[str, str]:
    """The same for sources by name."""
    return {name: stored_path(source) for name, source in sources.items()}


def same_source(first: str | None, second: str | None) -> bool:
    """Whether two texts name the same folder, however they were typed, or the same Hub id."""
    return _where(first) == _where(second)


def _where(source: str | None) -> str | None:
    return os.path.realpath(source) if source is not None and os.path.isdir(source) else source


def shown_path(text: str) -> str:
    """A stored source as a card shows it: a folder below the working folder from there, so that no home is told."""
    if not os.path.isabs(text):
        return text
    inside = os.path.relpath(text)
    return text if inside.startswith(os.pardir) else inside
