"""NOAH, Neural Prompt Search, as a PEFT tuner: importing this package registers the method ``NOAH`` with PEFT."""

from __future__ import annotations

from peft_noah.architecture import Architecture, SearchSpace
from peft_noah.backbones import Backbone, register_backbone
from peft_noah.config import NoahConfig
from peft_noah.model import NoahModel
from peft_noah.registration import register
from peft_noah.search import BudgetError, SearchSettings, random_search, search
from peft_noah.version import __version__

register()

__all__ = [
    "Architecture",
    "Backbone",
    "BudgetError",
    "NoahConfig",
    "NoahModel",
    "SearchSettings",
    "SearchSpace",
    "__version__",
    "random_search",
    "register_backbone",
    "search",
]
