"""The methods that are compared, by name: what a user types, what a file is called, where a table has them."""

from __future__ import annotations

INHERITED, RETRAINED, RANDOM = "noah inherited", "noah retrained", "random search"

#: every method by its name, in the order of tables; "transfer <source>", an architecture found elsewhere, comes last
METHODS = (
    "full",
    "linear",
    "vpt",
    "adapter",
    "lora",
    "best single",
    RANDOM,
    INHERITED,
    RETRAINED,
)
TRANSFER = "transfer "


def find_method(name: str) -> str:
    """A method's name as tables have it, from what a user types (``"noah-retrained"``).

    Raises:
        ValueError: if there is no such method.
    """
    plain = " ".join(name.replace("-", " ").replace("_", " ").lower().split())
    if plain not in METHODS:
        raise ValueError(f"method {name!r} is not known (known: {', '.join(m.replace(' ', '-') for m in METHODS)}).")
    return plain


def table_order(method: str) -> tuple[int, str]:
    """Sorting key: where a method stands in a table."""
    return METHODS.index(method) if method in METHODS else len(METHODS), method
