"""Prompt modules from outside this package, by the row they have: which Python module defines each, as plain data.

A file that was made with one names that Python module, so that whoever lacks it is told what to import. Nothing is ever
imported because a file says so: only what a user names is, by `import_plugins`.
"""

from __future__ import annotations

import inspect
import os
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module

MAX_PLUGINS = 64
MAX_NAME = 200

_registered: dict[str, str] = {}
#: the dims that modules ask of named search spaces; of built-in ones here, since their classes import torch
_dims: dict[str, tuple[int, ...] | None] = {"ssf": (1,), "bitfit": (1,)}
_named_in_files: dict[str, str] = {}
#: Python modules that were imported as plugins, or whose import has registered something
_plugins: set[str] = set()


def note_registration() -> None:
    """Remember whose import registers something at this moment; the package's own registrations leave nothing."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            name = frame.f_globals["__name__"]
            if name.partition(".")[0] == "peft_noah":
                return
            _plugins.add(name)
        frame = frame.f_back


def note_plugin(row: str, python_module: str, dims: tuple[int, ...] | None = None) -> None:
    """Remember where a prompt module that has just been registered is defined, and the dims that it asks for."""
    _registered[row], _dims[row] = python_module, dims


def read_plugin_names(texts: Sequence[str], name: str = "plugin") -> tuple[str, ...] | None:
    """Python modules from texts like ``"my_package.my_module"`` or ``"one,other"``; None for no text.

    Raises:
        ValueError: if one is no dotted name.
    """
    names = dict.fromkeys(part.strip() for text in texts for part in text.split(","))
    for one in names:
        if one.endswith(".py"):  # else its first half would be imported, and the rest not found
            raise ValueError(
                f"{name} is {reprlib.repr(one)}; give the name of the Python module without .py, with dots for folders, and start "
                "where Python finds it, such as in its folder."
            )
        if not _is_module(one):
            raise ValueError(
                f"{name} is {reprlib.repr(one)}; give the dotted name of a Python module, such as my_package.my_module."
            )
    return tuple(names) or None


def import_plugins(names: Iterable[str] | None) -> None:
    """Import the Python modules that a user named, as Python finds them, and those in the working folder too.

    What they register (prompt modules, backbones, methods) is known from then on. Call it in every process.

    Raises:
        ValueError: if there is no such module, or it cannot be imported; the message says why.
    """
    here = os.getcwd()
    for name in names or ():
        try:
            with _on_path(here):
                import_module(name)
        except Exception as error:
            lacking = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            if lacking:
                raise ValueError(
                    f"plugin {name!r} is not there: Python finds no module {error.name!r}, neither installed nor in {here}. "
                    "Check the name, start in its folder, or set PYTHONPATH."
                ) from error
            raise ValueError(f"plugin {name!r} cannot be imported ({type(error).__name__}: {error}).") from error
        _plugins.add(name)


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    """Let Python find modules in a folder meanwhile; later a folder of data called like a package must not pass for it."""
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)  # last: a file of a user's must not take the place of an installed package
    try:
        yield
    finally:
        sys.path.remove(folder)


def check_imported(names: Iterable[str] | None) -> None:
    """Refuse to go on without plugins that settings name.

    Raises:
        ValueError: if one has not been imported, or has registered nothing; the message says what to do.
    """
    known = {*_plugins, *_registered.values()}
    if missing := [
        name
        for name in names or ()
        if name not in sys.modules or not any(f"{module}.".startswith(f"{name}.") for module in known)
    ]:
        raise ValueError(
            f"these settings need the plugin {', '.join(missing)}, which is not imported, and never is because a file says so. If "
            f"you trust it, add {' '.join(f'--plugin {name}' for name in missing)}, or import it in Python first."
        )


def _is_module(name: object) -> bool:
    """Whether a name could be that of a Python module."""
    return isinstance(name, str) and len(name) <= MAX_NAME and all(part.isidentifier() for part in name.split("."))


def own_dims(row: str) -> tuple[int, ...] | None:
    """The dims that a named search space gives a prompt module; None: those of the space."""
    return _dims.get(_name_in(_dims, row))


def plugins_among(rows: Iterable[str]) -> dict[str, str]:
    """The Python module of each row whose prompt module was registered from outside."""
    names = {row: _name_in(_registered, row) for row in rows}
    return {row: _registered[name] for row, name in names.items() if name is not None}


def _name_in(modules: Mapping[str, str], row: str) -> str | None:
    """The name of a row's prompt module, ``mine`` for the rows ``mine`` and ``mine_query``; None: it is not among them."""
    names = (name for name in modules if row == name or row.startswith(f"{name}_"))
    return max(names, key=len, default=None)


def read_plugins(data: object) -> dict[str, str]:
    """What a file says of its plugins, checked, and remembered for `import_hint`.

    Raises:
        ValueError: if it is no mapping of rows to dotted names.
    """
    if not isinstance(data, Mapping) or len(data) > MAX_PLUGINS:
        raise ValueError(f"plugins is {reprlib.repr(data)}; give a mapping of rows to Python modules.")
    for row, module in data.items():
        names = [row, *module.split(".")] if isinstance(row, str) and isinstance(module, str) else [""]
        if not all(name.isidentifier() for name in names) or len(row) + len(module) > MAX_NAME:
            raise ValueError(
                f"plugins has {reprlib.repr(row)}: {reprlib.repr(module)}; give a row and a Python module's dotted name."
            )
    _named_in_files.update(data)
    return dict(data)


def import_hint(row: str) -> str:
    """What to do about a row that no registered prompt module has: a sentence, as far as a file that was read says."""
    module = _named_in_files.get(_name_in(_named_in_files, row))
    if module is None:
        return "Import the Python module that registers it first, on the command line by --plugin."
    if module == "__main__":
        return f"{row!r} was defined in a script or notebook: run its definition, with @register_prompt_module, first."
    return (
        f"It was made with one from the Python module {module!r}: if you trust it, import {module} first, on the command line "
        f"by --plugin {module}."
    )
