"""NOAH, Neural Prompt Search, as a PEFT tuner: importing this package registers the method ``NOAH`` with PEFT.

What needs torch and PEFT is imported when its name is first used, so that the command line's help and a search over
plain data start at once. PEFT knows NOAH as soon as both packages are imported, in whatever order.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace

# not on first use like the rest: the module's name would hide the function's
from peft_noah.searching.budget import BudgetError
from peft_noah.searching.design import Design
from peft_noah.searching.evolution import Evolution, RandomSearch, random_search, search
from peft_noah.searching.race import Race, RaceSettings, race
from peft_noah.searching.result import SearchSettings
from peft_noah.tuner.registration import register_with_peft
from peft_noah.version import __version__

if TYPE_CHECKING:
    from peft_noah.fast import check_backbone
    from peft_noah.tuner.backbones import Backbone, register_backbone
    from peft_noah.tuner.config import NoahConfig
    from peft_noah.tuner.model import NoahModel
    from peft_noah.tuner.prompts import PromptModule, register_prompt_module

__all__ = [
    "Architecture",
    "Backbone",
    "BudgetError",
    "Design",
    "Evolution",
    "NoahConfig",
    "NoahModel",
    "PromptModule",
    "Race",
    "RaceSettings",
    "RandomSearch",
    "SearchSettings",
    "SearchSpace",
    "__version__",
    "check_backbone",
    "race",
    "random_search",
    "register_backbone",
    "register_prompt_module",
    "search",
]

_ON_FIRST_USE = {
    "Backbone": "peft_noah.tuner.backbones",
    "NoahConfig": "peft_noah.tuner.config",
    "NoahModel": "peft_noah.tuner.model",
    "PromptModule": "peft_noah.tuner.prompts",
    "check_backbone": "peft_noah.fast",
    "register_backbone": "peft_noah.tuner.backbones",
    "register_prompt_module": "peft_noah.tuner.prompts",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_FIRST_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})


register_with_peft()
