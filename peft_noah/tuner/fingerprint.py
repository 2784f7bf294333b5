"""A fingerprint of a backbone's frozen weights, which tells a model from a twin of the same shape.

It is no hash: a half-precision or quantised copy is the same model and must agree. It holds one number of every tensor,
which takes microseconds whatever the size of the model, with two bytes of the tensor's name and shape. Copies differ by
rounding, less than one part in 256; another training moves nearly every number by more. Numbers that one of the models
cannot give (a quantised matrix, a tensor under another name) are not compared.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from peft_noah.tuner.backbones import BACKBONES

#: most tensors that are looked at, spread evenly over the model
MAX_TENSORS = 1024
_PLACE = 0.618  # of the number in its tensor, as a share of its length: neither at an end nor in the middle
_ROUNDING = 2**-8  # of bfloat16 and of the two bytes that a number is kept in, together
_TINY = 2**-20  # below float16's normal numbers
_ENTRY = struct.Struct("<He")


class OtherBackboneWarning(UserWarning):
    """An adapter is loaded on a twin of its backbone: of the same shape, with other weights."""


def fingerprint_backbone(model: nn.Module) -> str | None:
    """The fingerprint of a model's frozen weights, without classifier and adapters; None where it has none to read.

    Args:
        model: as it was loaded, or with adapters of any kind on it.
    """
    found = dict(_frozen_tensors(model))
    names = list(found)
    names = (
        [names[index * len(names) // MAX_TENSORS] for index in range(MAX_TENSORS)]
        if len(names) > MAX_TENSORS
        else names
    )
    numbers = [found[name].detach().flatten()[int(_PLACE * found[name].numel())] for name in names]
    entries = b"".join(
        _ENTRY.pack(_key(name, found[name]), max(-6e4, min(6e4, float(number))))
        for name, number in zip(names, numbers, strict=True)
    )
    return base64.b64encode(entries).decode() or None


def same_backbone(first: str, second: str) -> bool:
    """Whether two fingerprints may be of copies of one model, in whatever precision.

    Raises:
        ValueError: if one of them is none.
    """
    known, other = _read(first), _read(second)
    return all(
        abs(known[key] - other[key]) <= _ROUNDING * abs(known[key]) + _TINY for key in known.keys() & other.keys()
    )


def _read(fingerprint: str) -> dict[int, float]:
    try:
        data = base64.b64decode(fingerprint, validate=True)
        entries = list(_ENTRY.iter_unpack(data))
    except (binascii.Error, ValueError, struct.error, TypeError) as error:
        raise ValueError("the backbone's fingerprint cannot be read. Save the adapter again.") from error
    keys = [key for key, _ in entries]
    # two tensors may share a key: their numbers cannot be told apart
    return {key: number for key, number in entries if keys.count(key) == 1}


def _key(name: str, tensor: torch.Tensor) -> int:
    return zlib.crc32(f"{name} {tuple(tensor.shape)}".encode()) & 0xFFFF


def _frozen_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The backbone's own plain tensors by their names without adapters; those of transformers' models without the head."""
    core, heads = _without_heads(model)
    wrapped = {name: module for name, module in core.named_modules() if _wraps(module)}
    for name, tensor in core.named_parameters():
        own = _own_name(name, wrapped)
        # a quantised or spread weight is of another class, or holds whole numbers
        plain = type(tensor) in (nn.Parameter, torch.Tensor) and tensor.is_floating_point()
        if own is not None and not own.startswith(heads) and plain and tensor.device.type != "meta" and tensor.numel():
            yield own, tensor


def _without_heads(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model below a classifier, and the beginnings of names in it that are of classifiers all the same."""
    prefix = getattr(model, "base_model_prefix", None) or ""
    family = BACKBONES.get(getattr(getattr(model, "config", None), "model_type", None))
    if family is None or isinstance(getattr(model, prefix, None), nn.Module):
        core, prefix = getattr(model, prefix, model), f"{prefix}."
    else:  # a class whose base model has another name, as of one half of a pair
        core, prefix = model, ""
    heads = [] if family is None else [f"{name}." for name in family.trained_names(model) if name.startswith(prefix)]
    return core, tuple(name.removeprefix(prefix) for name in heads)


def _wraps(module: nn.Module) -> bool:
    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def _own_name(name: str, wrapped: dict[str, nn.Module]) -> str | None:
    """The name that a tensor has in the model without adapters; None for what is not the backbone's own, or changed."""
    parts, own = name.split("."), []
    for index, part in enumerate(parts):
        above = wrapped.get(".".join(parts[:index]))
        if above is None:
            own.append(part)
        elif part not in ("base_layer", "original_module") or getattr(above, "merged", False):
            return None
    # the pooler is made anew where a checkpoint has none, and no classifier reads it
    return None if own[0] == "pooler" else ".".join(own)
