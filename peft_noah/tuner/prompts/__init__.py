"""The prompt modules, by the name of their row in an architecture. Adding one: a file that registers it."""

from __future__ import annotations

from collections.abc import Iterable

from peft_noah.plugins import import_hint, note_plugin, note_registration
from peft_noah.tuner.prompts.adapter import Adapter
from peft_noah.tuner.prompts.adapter_plus import AdapterPlus
from peft_noah.tuner.prompts.base import SITES, PromptModule
from peft_noah.tuner.prompts.bitfit import BitFit
from peft_noah.tuner.prompts.lora import Lora
from peft_noah.tuner.prompts.prefix import Prefix
from peft_noah.tuner.prompts.rep_adapter import RepAdapter
from peft_noah.tuner.prompts.ssf import Ssf
from peft_noah.tuner.prompts.vpt import Vpt

#: applied in this order where several share a site
PROMPT_MODULES: dict[str, type[PromptModule]] = {
    cls.name: cls for cls in (Lora, Adapter, Vpt, AdapterPlus, Ssf, BitFit, Prefix, RepAdapter)
}


def find_prompt_module(row: str) -> type[PromptModule] | None:
    """The class of the modules that a row of an architecture has; None where none is registered.

    A row is the name of a prompt module. One that sits on projections may also have rows of its own for some of them:
    ``lora_fc1`` is `Lora` at the site ``fc1`` alone, see `site_of`.
    """
    return PROMPT_MODULES.get(_split(row)[0])


def site_of(row: str) -> str | None:
    """The name of the one Linear in a block that a row is for, ``"fc1"`` of ``"lora_fc1"``; None: the class says where."""
    return _split(row)[1]


def _split(row: str) -> tuple[str, str | None]:
    if row in PROMPT_MODULES:
        return row, None
    targeted = (name for name, cls in PROMPT_MODULES.items() if cls.site == "projection")
    name = max((name for name in targeted if row.startswith(f"{name}_")), key=len, default=None)
    return (row, None) if name is None else (name, row.removeprefix(f"{name}_"))


def check_row(row: str, dim: int = 0) -> None:
    """Refuse a row that no prompt module has, or a dim that its modules cannot have.

    Args:
        row: of an architecture, a search space or a design.
        dim: the largest in any block.

    Raises:
        ValueError: says which are known, or what is allowed.
    """
    cls = find_prompt_module(row)
    if cls is None:
        raise ValueError(f"unknown prompt module {row!r} (known: {', '.join(PROMPT_MODULES)}). {import_hint(row)}")
    cls.check_stored(dim)


def in_order(rows: Iterable[str]) -> list[str]:
    """Rows in the order in which their modules act where several share a site; unknown ones last."""
    order = {name: place for place, name in enumerate(PROMPT_MODULES)}
    places = {row: order.get(getattr(find_prompt_module(row), "name", None), len(order)) for row in rows}
    return sorted(places, key=places.get)


def by_row(modules: Iterable[PromptModule]) -> list[tuple[type[PromptModule], list[PromptModule]]]:
    """The modules of an adapter, those of each row together, with their class."""
    rows: dict[str, list[PromptModule]] = {}
    for module in modules:
        rows.setdefault(module.row, []).append(module)
    return [(type(group[0]), group) for group in rows.values()]


def is_own_hook(hook: object) -> bool:
    """Whether a hook is one that a prompt module placed on its block."""
    return any(cls.owns_hook(hook) for cls in PROMPT_MODULES.values())


def register_prompt_module(cls: type[PromptModule]) -> type[PromptModule]:
    """Make a prompt module known by its ``name``; as a decorator it gives the class back.

    Architectures, configs and search spaces may have a row of that name from then on. It changes nothing for those that
    do not name it: the search spaces ``"vtab"`` and ``"few_shot"`` hold the modules of the paper, and another one joins as
    in ``SearchSpace.vtab(12, modules=("lora", "vpt", "mine"))``. What is saved with it says which Python module to import.

    Raises:
        ValueError: if it is no `PromptModule`, has no site that is known, or its name is another module's.
    """
    if not (isinstance(cls, type) and issubclass(cls, PromptModule)):
        raise ValueError(f"{cls!r} is not a subclass of PromptModule.")
    name, site = getattr(cls, "name", None), getattr(cls, "site", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{cls.__name__}.name is {name!r}; give the word that names its row in an architecture.")
    if site not in SITES:
        raise ValueError(f"{cls.__name__}.site is {site!r}; give one of {', '.join(map(repr, SITES))}.")
    known = PROMPT_MODULES.setdefault(name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"a prompt module {name!r} is registered already: {known.__module__}.{known.__qualname__}.")
    if not cls.__module__.startswith("peft_noah."):
        note_plugin(name, cls.__module__, cls.dims)
    note_registration()
    PROMPT_MODULES[name] = cls  # the same one defined again, as when a notebook's cell is run twice
    return cls


__all__ = [
    "PROMPT_MODULES",
    "Adapter",
    "AdapterPlus",
    "BitFit",
    "Lora",
    "Prefix",
    "PromptModule",
    "RepAdapter",
    "Ssf",
    "Vpt",
    "by_row",
    "check_row",
    "find_prompt_module",
    "in_order",
    "is_own_hook",
    "register_prompt_module",
    "site_of",
]
