"""What is printed where a terminal or pipe cannot do all letters: a result is never lost to its own plus-minus sign."""

from __future__ import annotations

import codecs
import sys

_PLAIN = {"±": "+/-", "·": "|", "×": "x", "…": "...", "–": "-", "—": "-", "−": "-", "→": "->", "τ": "tau"}


def print_in_any_encoding() -> None:
    """Let standard output and error write what their encoding lacks in other letters."""
    codecs.register_error("peft-noah", _spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="peft-noah")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or _escaped(letter) for letter in letters), error.end


def _escaped(letter: str) -> str:
    """A letter of a name, to be told from others; of a frame or bar, nothing that matters."""
    return "-" if "\u2500" <= letter <= "\u259f" else letter.encode("ascii", "backslashreplace").decode()
