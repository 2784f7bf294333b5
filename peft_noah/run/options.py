"""What an option of a run carries besides its name, type and default: its help, and how it is typed on a command line."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Typed:
    """How an option is typed where a value of its type cannot be.

    Attributes:
        kind: its type on the command line.
        default: what stands there for the option's own default.
        read: from what was typed and the option's name to the value; raises ValueError on what cannot be read.
        name: its name there; None: the option's own.
    """

    kind: Any
    default: Any
    read: Callable[[Any, str], Any]
    name: str | None = None


def option(
    default: Any,
    help: str,
    typed: Typed | None = None,
    *,
    strategies: Sequence[str] = (),
    always: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field that the command line offers.

    Args:
        default: its default.
        help: one or two sentences.
        typed: how it is typed, where a value of its type cannot be.
        strategies: of a run, on which alone it has an effect; none: on all.
        always: values that have an effect on all nevertheless.
    """
    if strategies:
        but = "".join(f", but for {value}" for value in always)
        help = f"{help} With --strategy {' or '.join(strategies)} only{but}."
    return field(default=default, metadata={"help": help, "typed": typed, "strategies": strategies, "always": always})


def check_strategy(
    options: Sequence[Field], given: Mapping[str, Any], used: Collection[str], chosen: str, instead: str
) -> None:
    """Refuse what was given to a job on whose strategies it has no effect.

    Args:
        options: fields.
        given: their values.
        used: the strategies of the job.
        chosen: what these were chosen by, as it is typed.
        instead: how to choose another; ``{}`` is its name.

    Raises:
        ValueError: an option of another strategy is not at its default.
    """
    for one in options:
        of, value = one.metadata.get("strategies"), given.get(one.name, one.default)
        if not of or set(of) & set(used) or value in (one.default, *one.metadata["always"]):
            continue
        name = one.metadata["typed"].name if one.metadata["typed"] else None
        raise ValueError(
            f"--{(name or one.name).replace('_', '-')} has no effect on {chosen}: leave it out, or {instead.format(' or '.join(of))}."
        )


def help_of(one: Field) -> str | None:
    """The help of an option; None: the command line does not offer it."""
    return one.metadata.get("help")


def typed_as(one: Field, kind: Any) -> Typed:
    """How an option is typed.

    Args:
        one: the field.
        kind: its type.
    """
    return one.metadata["typed"] or Typed(kind, one.default, lambda value, name: value)


def read_pairs(texts: Sequence[str], name: str) -> dict[str, str] | None:
    """Texts like ``NAME=SOURCE`` as a dict; None for no text."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (left, _, right) in zip(texts, pairs, strict=True) if not (left and right)]:
        raise ValueError(f"{name} must be NAME=SOURCE, got {wrong[0]!r}.")
    return {left: right for left, _, right in pairs} or None


def read_triple(text: str | None, name: str) -> tuple[float, ...] | None:
    """Three numbers from a text like ``0.5,0.5,0.5``."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be three numbers like '0.5,0.5,0.5', got {text!r}.")
    return values


def read_names(text: str | None, name: str) -> tuple[str, ...] | None:
    """Names from a text like ``linear,lora``; ``none`` for none, and None for no text."""
    if text is None:
        return None
    return () if text == "none" else tuple(text.split(","))
