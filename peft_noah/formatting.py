"""How names, numbers and tables are written in reports, model cards and figures.

Names come from users and from files of strangers, so whatever goes into Markdown passes through here: no value can
open a tag, a link, a table cell or a code block of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from peft_noah.search_space import MODULES

_MAX_LISTED = 30
#: the Linears that families name in a block, in the order in which they compute
_LINEARS = ("query", "key", "value", "output", "fc1", "fc2")

_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]~$#!"})
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"})


def module_order(names: Iterable[str]) -> list[str]:
    """Rows in the order in which all tables and figures show them: those of the paper's modules, then others by name.

    Rows of one module by site, such as ``lora_fc1``, follow the module, in the order in which a block computes.
    """
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, str, int]:
    module, _, site = name.rpartition("_")
    module, place = (module, 1 + _LINEARS.index(site)) if module and site in _LINEARS else (name, 0)
    return MODULES.index(module) if module in MODULES else len(MODULES), module, place


def one_line(text: object) -> str:
    """``text`` on one line: control, bidirectional and other unprintable characters become single spaces."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def escape(text: object) -> str:
    """``text`` as Markdown shows it literally, on one line, also inside a table.

    Examples:
        >>> escape("fashion_mnist <b>")
        'fashion\\\\_mnist &lt;b&gt;'
    """
    return one_line(text).translate(_MARKDOWN).translate(_HTML)


def code(text: object) -> str:
    """``text`` as a Markdown code span, fenced by more backticks than it holds."""
    text = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right, padded so that its source reads well.

    The cells are Markdown already; see :func:`escape` and :func:`code`.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (zip(line, widths, strict=True) for line in lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def facts(values: Mapping[str, object]) -> str:
    """Plain data as a Markdown list, one ``name: value`` a line; underscores in names become spaces."""
    return "\n".join(f"- {escape(str(name).replace('_', ' '))}: {_fact(value)}" for name, value in values.items())


def _fact(value: object) -> str:
    if isinstance(value, Mapping) and value and all(map(_is_plain, value.values())):
        return ", ".join(f"{escape(name)} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, Mapping) and value and all(_is_flat(entry) for entry in value.values()):
        return "; ".join(f"{escape(name)} ({_fact(entry)})" for name, entry in value.items())
    if isinstance(value, (list, tuple)) and value and all(map(_is_plain, value)):
        more = f", ... ({len(value):,} in all)" if len(value) > _MAX_LISTED else ""
        return ", ".join(map(_plain, value[:_MAX_LISTED])) + more
    return _plain(value) if _is_plain(value) else code(json.dumps(value, ensure_ascii=False))


def _is_flat(value: object) -> bool:
    """Whether a value is a mapping of plain ones."""
    return isinstance(value, Mapping) and bool(value) and all(map(_is_plain, value.values()))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return escape("" if value is None else value) or "none"


def percent(fraction: float, error: float | None = None) -> str:
    """A fraction from 0 to 1 in percent, with its standard error where there is one.

    Examples:
        >>> percent(0.845, 0.0256), percent(1.0)
        ('84.5 ± 2.6', '100.0')
    """
    return f"{100 * fraction:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
