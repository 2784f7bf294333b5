"""Make PEFT know the tuner type ``NOAH``: one enum member and one registration call, as soon as PEFT is imported.

PEFT takes seconds to import, and ``peft-noah --help`` or a search over plain data never need it. So ``import peft_noah``
registers at once where PEFT is loaded already, and otherwise when something imports PEFT: before that, no loader exists
that could miss NOAH.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftType

NAME = "NOAH"


def _add_enum_member(name: str) -> PeftType:
    """Add ``PeftType.<name>``, as if it stood in PEFT's own source.

    PEFT looks methods up by enum member, transformers by the member's ``value``, and pickle by ``PeftType(value)``, so
    a plain string in PEFT's tables is not enough. ``enum`` has no public way to extend a class after its creation.
    """
    from peft import PeftType

    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register() -> None:
    """Register NOAH with PEFT, importing it if need be; a second call changes nothing."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import register_peft_method

    if NAME not in PeftType.__members__:
        _add_enum_member(NAME)
    if PeftType(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from peft_noah.tuner.config import NoahConfig
        from peft_noah.tuner.model import NoahModel

        register_peft_method(name=NAME.lower(), config_cls=NoahConfig, model_cls=NoahModel)


def register_with_peft() -> None:
    """Register NOAH now if PEFT is imported, else when it is; a second call changes nothing."""
    if "peft" in sys.modules:
        register()
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Sees the imports of PEFT and of this package's modules, and registers NOAH after the outermost of them.

    Registering imports modules of this package that import PEFT. Where one of them is what brought PEFT in, as in
    ``from peft_noah.tuner.config import NoahConfig``, it is only half executed when PEFT is ready, so registration waits for
    its end. Imports in other threads count too: to wait for one while PEFT's import is locked could be a deadlock.

    ``find_spec`` alone, which is how transformers looks whether PEFT is installed, changes nothing. After an import
    that fails the next one is seen again. Once NOAH is registered the watch is over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0  # watched imports under way, in all threads
        self._peft_ready = False
        self._searching = threading.local()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give, its loader wrapped; None for modules that are not watched."""
        if not (name == "peft" or name.startswith("peft_noah.")) or getattr(self._searching, "now", False):
            return None
        self._searching.now = True  # the search below comes through here again
        try:
            spec = find_spec(name)
        finally:
            self._searching.now = False
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def begin(self) -> None:
        """A watched module starts to execute."""
        with self._lock:
            self._running += 1

    def end(self, name: str, failed: bool) -> None:
        """A watched module has executed, or failed to."""
        with self._lock:
            self._running -= 1
            self._peft_ready = self._peft_ready or (name == "peft" and not failed)
            due = self._peft_ready and not self._running and not failed and self in sys.meta_path
            if due:
                sys.meta_path.remove(self)
        if due:
            register()


class _WatchedLoader(Loader):
    """A module's own loader, which tells the watch when execution begins and ends, and then steps aside."""

    def __init__(self, loader: Any, watch: _Watch) -> None:
        self._loader = loader
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_code for runpy, get_resource_reader for importlib.resources, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._watch.begin()
        failed = True
        try:
            self._loader.exec_module(module)
            failed = False
        finally:
            self._watch.end(module.__spec__.name, failed)
