"""A table as plain data, written as Markdown, LaTeX, CSV, or for the terminal.

Names come from files and may be hostile: each writer escapes them for its own format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_noah.formatting import escape, one_line, table
from peft_noah.results.statistics import Estimate

if TYPE_CHECKING:
    import rich.table

MISSING = "–"

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After the end of a row these two would be read as its options.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    **{char: f"\\{char}" for char in "&%$#_"},
}
_LATEX_TABLE = str.maketrans(_LATEX)


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        value: in the unit that the table names.
        error: its standard error, in the same unit; None where there is none.
        bold: whether it is set in bold.
        mark: a footnote mark.
        decimals: digits behind the point.
        signed: whether a positive number carries its sign, as a difference does.
    """

    value: float
    error: float | None = None
    bold: bool = False
    mark: str = ""
    decimals: int = 1
    signed: bool = False

    def __str__(self) -> str:
        text = f"{self.value:{'+' if self.signed else ''},.{self.decimals}f}"
        if float(text.replace(",", "")) == 0:  # no "-0.0"
            text = f"{0:.{self.decimals}f}"
        text = text.replace("-", "−")
        return text + ("" if self.error is None else f" ± {self.error:.{self.decimals}f}") + self.mark

    @classmethod
    def percent(cls, estimate: Estimate, bold: bool = False, mark: str = "") -> Number:
        """A share from 0 to 1 and its standard error, in percent."""
        error = None if estimate.error is None else 100 * estimate.error
        return cls(100 * estimate.mean, error, bold, mark)


Entry = str | Number | None


@dataclass(frozen=True)
class Table:
    """A table as plain data.

    Attributes:
        name: its file name without suffix.
        title: a line above it; "" for none.
        header: the names of the columns; line breaks in them are kept in the terminal alone, where width is short.
        rows: per row one entry per column; None is missing and shown as a dash.
        notes: sentences below it.
        rules: the rows, from 0, that a line is drawn above.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()

    def to_markdown(self, level: int = 2) -> str:
        """The table in Markdown, with its title as a heading of a level and its notes below."""
        rows = [[_markdown(entry) for entry in row] for row in self.rows]
        parts = [f"{'#' * level} {escape(self.title)}", table([escape(name) for name in self.header], rows)]
        return "\n\n".join([*parts, *(escape(note) for note in self.notes)]) + "\n"

    def to_latex(self) -> str:
        """The table as a LaTeX ``table`` with rules of the package booktabs; the notes stand below it in small print."""
        alignments = ["l" if self._is_text(column) else "r" for column in range(len(self.header))]
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{''.join(alignments)}}}", r"\toprule"]
        lines += [_latex_row(self.header), r"\midrule"]
        for index, row in enumerate(self.rows):
            if index > 0 and index in self.rules:
                lines.append(r"\midrule")
            lines.append(_latex_row(row))
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip{{\footnotesize {latex(note)}\par}}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def to_csv(self) -> str:
        """The table as CSV: full numbers, the standard errors in a column of their own, missing entries empty.

        A text that a spreadsheet would run as a formula gets an apostrophe before it.
        """
        columns: list[list[str]] = []
        for column, name in enumerate(self.header):
            entries = [row[column] for row in self.rows]
            columns.append([_csv_text(name), *map(_csv_value, entries)])
            errors = [entry.error if isinstance(entry, Number) else None for entry in entries]
            if any(error is not None for error in errors):
                shown = ("" if error is None else f"{error:.6g}" for error in errors)
                columns.append([_csv_text(f"{name} s.e."), *shown])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        return text.getvalue()

    def to_rich(self) -> rich.table.Table:
        """The table for the terminal, with its notes below."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        # A Text is shown as it is: a name cannot bring markup of its own.
        title = Text(one_line(self.title)) if self.title else None
        notes = Text("\n".join(one_line(note) for note in self.notes)) if self.notes else None
        result = RichTable(title=title, caption=notes, caption_justify="left", box=SIMPLE_HEAD)
        for column, name in enumerate(self.header):
            lines = Text("\n".join(map(one_line, name.split("\n"))))
            result.add_column(lines, justify="left" if self._is_text(column) else "right", overflow="fold")
        for index, row in enumerate(self.rows):
            cells = [Text(_plain(entry), style="bold" if _is_bold(entry) else "") for entry in row]
            result.add_row(*cells, end_section=index + 1 in self.rules)
        return result

    def _is_text(self, column: int) -> bool:
        return column == 0 or all(isinstance(row[column], str) for row in self.rows)


def bold_note(best: str) -> str:
    """What bold says; see :func:`~peft_noah.results.statistics.clear_winner`.

    Args:
        best: what is set in bold, such as ``"the best of its row"``.
    """
    return (
        f"Bold: {best}, only where its lead over the runner-up is larger than the standard error of that lead: over "
        "paired seeds where both have several in common, else both errors combined, sqrt(a^2 + b^2)."
    )


def one_seed_note(mark: str, images: str, n: str = "") -> str:
    """What the error of a single seed is.

    Args:
        mark: what such a number carries.
        images: the images that the error is over.
        n: their number in words, if it is said.
    """
    return (
        f"{mark}: one seed, so the binomial standard error over {images}, sqrt(p (1 - p) / n){n}; the spread over seeds "
        "is not in it."
    )


def count_range(counts: Iterable[int]) -> str:
    """The least and the greatest of some counts, or the one that all are.

    Examples:
        >>> count_range([3, 5, 3]), count_range([2_000])
        ('3 to 5', '2,000')
    """
    low, *between = sorted(set(counts))
    return f"{low:,} to {between[-1]:,}" if between else f"{low:,}"


def latex(text: object) -> str:
    """``text`` as LaTeX prints it literally, on one line.

    Examples:
        >>> latex("50 % of a_b")
        '50 \\\\% of a\\\\_b'
    """
    return one_line(text).translate(_LATEX_TABLE)


def _plain(entry: Entry) -> str:
    return MISSING if entry is None else one_line(entry)


def _is_bold(entry: Entry) -> bool:
    return isinstance(entry, Number) and entry.bold


def _markdown(entry: Entry) -> str:
    text = escape(_plain(entry))
    return f"**{text}**" if _is_bold(entry) else text


def _latex_row(entries: Sequence[Entry]) -> str:
    cells = [latex(_plain(entry)) for entry in entries]
    # \boldmath: what stands between dollar signs is bold too.
    cells = [
        rf"{{\boldmath\textbf{{{cell}}}}}" if _is_bold(entry) else cell
        for entry, cell in zip(entries, cells, strict=True)
    ]
    return " & ".join(cells) + r" \\"


def _csv_text(text: str) -> str:
    text = one_line(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _csv_value(entry: Entry) -> str:
    """What stands in the column of an entry; its standard error has a column of its own."""
    if isinstance(entry, Number):
        return f"{entry.value:.10g}"
    return "" if entry is None else _csv_text(entry)
