"""No adapter is read from a pickle, which could run any code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from huggingface_hub import constants, file_exists, try_to_load_from_cache


def refuse_pickle(source: str, subfolder: str | None, options: Mapping[str, Any]) -> None:
    """Refuse an adapter that PEFT would read from a pickle: it falls back to adapter_model.bin, which torch unpickles.

    No NOAH adapter was ever saved like that.

    Args:
        source: a folder, or a repository on the Hub.
        subfolder: in it.
        options: of PEFT's ``from_pretrained``, which say where on the Hub to look.

    Raises:
        ValueError: adapter_model.bin is there and adapter_model.safetensors is not.
    """
    has = partial(_has_file, source, subfolder, options)
    if not has("adapter_model.safetensors") and has("adapter_model.bin"):
        raise ValueError(
            f"{os.path.join(source, subfolder or '')!r} has its weights as adapter_model.bin alone, a pickle, which could "
            "run any code. Ask for adapter_model.safetensors, or convert it where you trust it."
        )


def _has_file(source: str, subfolder: str | None, options: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT would find a file there: in a folder, in a repository on the Hub, or offline in its cache."""
    if os.path.isdir(source):
        return os.path.exists(os.path.join(source, subfolder or "", name))
    path = f"{subfolder}/{name}" if subfolder else name
    if constants.HF_HUB_OFFLINE:
        found = try_to_load_from_cache(source, path, options.get("cache_dir"), options.get("revision"))
        return isinstance(found, str)
    token = options.get("token", options.get("use_auth_token"))
    return file_exists(source, path, revision=options.get("revision"), token=token)
