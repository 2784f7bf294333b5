"""The methods that are compared, by name: what a user types, what a file is called, where a table has them."""

from __future__ import annotations

SINGLE, RANDOM = "best single", "random search"
INHERITED, RETRAINED, CONTINUED = "noah inherited", "noah retrained", "noah continued"

#: what becomes of the architecture that the search finds: its weights cut out of the supernet; trained from scratch, as in
#: the paper; cut out and trained on
NOAH = (INHERITED, RETRAINED, CONTINUED)
#: the methods that need a trained supernet, in the order in which they are best run
FROM_SUPERNET = (*NOAH, RANDOM)

#: every method by its name, in the order of tables; "transfer <source>", an architecture found elsewhere, comes last
METHODS = (
    "full",
    "linear",
    "vpt",
    "adapter",
    "lora",
    SINGLE,
    RANDOM,
    *NOAH,
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
