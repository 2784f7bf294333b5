"""What tables, figures and cards call the rows of an architecture: their prompt modules say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_noah.formatting import escape, module_order, table


def module_label(row: str) -> str:
    """A row as figures and tables call it, with what its dims count; one of no known prompt module as it is.

    One for a single projection says which: ``LoRA fc1 (rank)``.
    """
    cls, site = _find(row)
    if cls is None or cls.label is None:
        return row
    name, bracket, counted = cls.label.partition(" (")
    return cls.label if site is None else f"{name} {site}{bracket}{counted}"


def module_colour(row: str) -> str | None:
    """The colour of a row in figures, ``#rrggbb``, its prompt module's; None where that has none."""
    cls, _ = _find(row)
    return None if cls is None else cls.colour


def architecture_table(rows: Mapping[str, Sequence[int]]) -> str:
    """The dims of an architecture as a Markdown table: one row per prompt module, one column per block from 1."""
    num_blocks = len(next(iter(rows.values())))
    return table(
        ["block", *(str(block) for block in range(1, num_blocks + 1))],
        [[escape(module_label(name)), *(str(dim) for dim in rows[name])] for name in module_order(rows)],
    )


def _find(row: str) -> tuple[type | None, str | None]:
    # here and not above: the prompt modules import torch, and whoever only wants to plan a table should not wait for it
    from peft_noah.tuner.prompts import find_prompt_module, site_of

    return find_prompt_module(row), site_of(row)
