"""A saved adapter, from a folder or the Hub, onto its backbone: read as a stranger's file, with every fault a ValueError."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from peft_noah.sources import find_source
from peft_noah.tuner.config import NoahConfig
from peft_noah.tuner.fingerprint import OtherBackboneWarning

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DTYPES = ("F64", "F32", "F16", "BF16")


def load_adapter(backbone: nn.Module, adapter: str | os.PathLike[str]) -> PeftModel:
    """Attach a saved NOAH adapter; nothing but its config and its safetensors file is read.

    Args:
        backbone: the model it was made for; after an error it may carry part of the adapter, so build a fresh one.
        adapter: a folder, or a Hub id.

    Raises:
        ValueError: if there is no adapter, its files are cut short or damaged, or it belongs to another model, be it a
            twin of the same shape with other weights.
        OSError: if the Hub cannot be reached.
    """
    folder = find_folder(adapter)
    config = read_config(folder)
    try:
        stored = _stored_keys(folder / WEIGHTS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", OtherBackboneWarning)
            model = PeftModel.from_pretrained(backbone, str(folder), config=config)
    except OtherBackboneWarning as error:
        raise ValueError(f"adapter {os.fspath(adapter)!r} cannot be used: {error}") from error
    except SafetensorError as error:
        raise _damaged(adapter, error) from error
    except KeyError as error:  # a classifier's weight, which PEFT looks up without asking
        raise ValueError(f"{WEIGHTS} in {os.fspath(adapter)!r} lacks {error}. Train or download it again.") from error
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        detail = str(error).split("\n")[1].strip()
        raise ValueError(
            f"adapter {os.fspath(adapter)!r} belongs to another model or number of classes: {detail}"
        ) from error
    # False: PEFT would ask the Hub whether the backbone's vocabulary has grown
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    _check_complete(stored, expected, adapter)
    return model


def read_config(folder: str | os.PathLike[str]) -> NoahConfig:
    """The config of a local adapter folder, checked.

    Raises:
        ValueError: if adapter_config.json cannot be read or used; the message names it.
    """
    path = os.path.join(folder, CONFIG)
    settings = NoahConfig.from_json_file(path)
    if settings.get("peft_type") != "NOAH":
        raise ValueError(f"{path} does not describe a NOAH adapter: its peft_type is {settings.get('peft_type')!r}.")
    for name in ("self", "cls"):  # PEFT passes all keys on as keyword arguments
        if name in settings:
            raise ValueError(f"{path} has the key {name!r}, which no adapter has.")
    try:
        return NoahConfig.from_peft_type(**settings)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def find_folder(adapter: str | os.PathLike[str]) -> Path:
    """The local folder of an adapter, fetched from the Hub where there is none here.

    Raises:
        ValueError: if there is no adapter.
        OSError: if the Hub cannot be reached.
    """
    missing = None
    adapter = find_source(adapter, "adapter", f"Give a folder with {CONFIG}, or a Hub id.")
    if os.path.isdir(adapter):
        missing = next((name for name in (CONFIG, WEIGHTS) if not os.path.isfile(os.path.join(adapter, name))), None)
        folder = Path(adapter)
    else:
        try:
            folder = [Path(hf_hub_download(os.fspath(adapter), name)).parent for name in (CONFIG, WEIGHTS)][0]
        except EntryNotFoundError as error:
            missing = CONFIG if CONFIG in str(error) else WEIGHTS
    if missing is not None:
        raise ValueError(f"{os.fspath(adapter)!r} holds no adapter: {missing} is missing. Train or save it again.")
    return folder


def stored_classes(folder: str | os.PathLike[str], head: str | Sequence[str]) -> int | None:
    """Number of classes of the classifier that was saved with an adapter; None where none was.

    Args:
        folder: of the adapter.
        head: what the family calls its classifier, or its classifiers.

    Raises:
        ValueError: if the weights cannot be read.
    """
    try:
        with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
            keys = [f"base_model.model.{name}.weight" for name in ([head] if isinstance(head, str) else head)]
            shapes = [file.get_slice(key).get_shape() for key in sorted({*keys} & {*file.keys()})]
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    return shapes[0][0] if shapes else None


def _damaged(adapter: str | os.PathLike[str], error: SafetensorError) -> ValueError:
    return ValueError(
        f"{WEIGHTS} in {os.fspath(adapter)!r} cannot be read ({str(error)[:500]}): the file is cut short or damaged. Train or "
        "download it again."
    )


def _stored_keys(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():
            if (dtype := file.get_slice(key).get_dtype()) not in _DTYPES:
                raise ValueError(f"{path} holds {key[:200]!r} as {dtype}; weights are floating-point numbers.")
        return set(file.keys())


def _check_complete(stored: set[str], expected: set[str], adapter: str | os.PathLike[str]) -> None:
    # a classifier that the model at hand does not have is left out on purpose
    unknown = [key for key in stored - expected if ".noah_" in key]
    for keys, fault in ((expected - stored, "lacks"), (unknown, "holds, against its config,")):
        if keys:
            raise ValueError(
                f"{WEIGHTS} in {os.fspath(adapter)!r} {fault} {min(keys)[:200]!r} ({len(keys)} in all): it belongs to "
                "another config. Train or download both again."
            )
