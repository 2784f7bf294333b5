"""The model families, by their ``config.model_type``. Adding one: an entry in the file of its kind, or `register_backbone`."""

from __future__ import annotations

from torch import nn

from peft_noah.plugins import note_registration
from peft_noah.tuner.backbones import beit, clip, decoders, dinov3, swin, text, timm, vit
from peft_noah.tuner.backbones.base import Backbone, has_module, how_to_wrap, width_of

BACKBONES: dict[str, Backbone] = {
    **vit.FAMILIES,
    **beit.FAMILIES,
    **clip.FAMILIES,
    **dinov3.FAMILIES,
    **swin.FAMILIES,
    **timm.FAMILIES,
    **text.FAMILIES,
    **decoders.FAMILIES,
}
_BUILT_IN = dict(BACKBONES)


def is_built_in(model_type: str | None) -> bool:
    """Whether a family's layout is the package's own, so that its tests vouch for it."""
    return model_type in _BUILT_IN and BACKBONES.get(model_type) is _BUILT_IN[model_type]


def register_backbone(model_type: str, backbone: Backbone) -> None:
    """Make a family known by its transformers ``config.model_type``.

    Raises:
        ValueError: if the family is known already with another layout.
    """
    if BACKBONES.get(model_type, backbone) != backbone:
        raise ValueError(
            f"model_type {model_type!r} is registered already, as {BACKBONES[model_type]}. Register each family once."
        )
    BACKBONES[model_type] = backbone
    note_registration()


def find_backbone(model_type: str | None, model: nn.Module | None = None) -> Backbone:
    """The layout of a family.

    Args:
        model_type: its transformers ``config.model_type``.
        model: what is to be adapted, so that the error can name a model of a known family inside it.

    Raises:
        ValueError: for a family that nobody has described.
    """
    if model_type not in BACKBONES:
        raise ValueError(
            f"no sites known for model_type {model_type!r} (known: {', '.join(sorted(BACKBONES))}). "
            f"{how_to_know(model_type, model)}"
        )
    return BACKBONES[model_type]


def how_to_know(model_type: str | None, model: nn.Module | None) -> str:
    """What to do about a model of a family that nobody has described."""
    for name, module in () if model is None else model.named_modules():
        if name and getattr(getattr(module, "config", None), "model_type", None) in BACKBONES:
            return f"This {type(model).__name__} holds a model of a known family as {name!r}. {how_to_wrap(name)}"
    return f"Describe its blocks with register_backbone({model_type!r}, Backbone(...)); examples/add_backbone.py shows how."


__all__ = [
    "BACKBONES",
    "Backbone",
    "find_backbone",
    "has_module",
    "how_to_know",
    "is_built_in",
    "register_backbone",
    "width_of",
]
