"""An architecture from wherever it lies: a published name, a file, a run or adapter folder, or an adapter on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from peft_noah.architecture import Architecture
from peft_noah.jsonfile import read_json
from peft_noah.searching.result import SearchResult
from peft_noah.sources import is_hub_id


def read_architecture(source: str | os.PathLike[str]) -> Architecture:
    """The architecture that ``source`` names.

    Args:
        source: a published name (``"vtab/cifar100"``); a JSON file, either an architecture or a search result, of which
            the best candidate is taken; a run folder (its search) or an adapter folder (its config); or the Hub id of a
            NOAH adapter, of which only adapter_config.json is fetched.

    Raises:
        ValueError: if it is none of these, or what it names holds no architecture.
    """
    path, text = Path(source).expanduser(), os.fspath(source)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".json":
        return _of_file(path)
    if text in Architecture.published_names():
        return Architecture.published(text)
    if is_hub_id(text) and text.partition("/")[0] not in ("vtab", "few_shot"):
        return _of_config(_fetch_config(text))
    return Architecture.published(text)  # which says what comes nearest


def source_label(source: str | os.PathLike[str]) -> str:
    """What tables call a source: a published name or Hub id as it is, a path by its last part."""
    path = Path(source).expanduser()
    return path.stem if path.suffix == ".json" else path.name if path.is_dir() else os.fspath(source)


def _of_file(path: Path) -> Architecture:
    data = read_json(path)
    if isinstance(data, dict) and "candidates" in data:
        return SearchResult.load(path).best.architecture
    if isinstance(data, dict) and "peft_type" in data:
        return _of_config(path)
    return Architecture.load(path)


def _of_folder(path: Path) -> Architecture:
    if (path / "adapter_config.json").exists():
        return _of_config(path / "adapter_config.json")
    if (path / "search.json").exists():
        return SearchResult.load(path / "search.json").best.architecture
    raise ValueError(
        f"{os.fspath(path)!r} holds no architecture: neither adapter_config.json nor search.json is there. Give a run "
        "folder after its search, or an adapter folder."
    )


def _of_config(path: Path) -> Architecture:
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        raise ValueError(f"{os.fspath(path)} states no architecture: it is no NOAH adapter.")
    return Architecture(config["architecture"])


def _fetch_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "adapter_config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"cannot fetch adapter_config.json of {name!r} ({type(error).__name__}): there is no such folder here, and "
            "the Hub did not give it. Check the name, or download the adapter first."
        ) from error
