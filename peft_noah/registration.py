"""Make PEFT know the tuner type ``NOAH``: one enum member and one registration call."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

NAME = "NOAH"


def _add_enum_member(name: str) -> PeftType:
    """Add ``PeftType.<name>``, as if it stood in PEFT's own source.

    PEFT looks methods up by enum member, transformers by the member's ``value``, and pickle by ``PeftType(value)``, so
    a plain string in PEFT's tables is not enough. ``enum`` has no public way to extend a class after its creation.
    """
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
    """Register NOAH with PEFT; a second call changes nothing."""
    if NAME not in PeftType.__members__:
        _add_enum_member(NAME)
    if PeftType(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from peft_noah.config import NoahConfig
        from peft_noah.model import NoahModel

        register_peft_method(name=NAME.lower(), config_cls=NoahConfig, model_cls=NoahModel)
