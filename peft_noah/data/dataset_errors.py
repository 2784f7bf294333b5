"""Whatever a library raises while it reads a dataset, in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets


@contextmanager
def reading(source: object, file: str = "", give: str = "parquet files or images") -> Iterator[None]:
    """Turn whatever reading a dataset, or one file of it, raises into one ValueError, and keep datasets' progress bars off
    our log."""
    _check_cache()
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # datasets, pyarrow and the Hub client share no base class for what they raise
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        if lines[1:] and "available configs" in lines[1]:
            lines[0] = f"{lines[0]} {lines[1]}. Choose one by dataset_config"
        raise ValueError(
            f"cannot read the dataset {source}: {file and f'{file}: '}{lines[0].rstrip('.') if lines else type(error).__name__}. Give a folder of "
            f"{give}, or the id of a Hub dataset that is reachable or in the cache."
        ) from error
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _check_cache() -> None:
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"the datasets library cannot write its cache, {cache}. Set HF_DATASETS_CACHE to a folder that can be "
            "written."
        )
