"""How well a saved adapter does, without the run that made it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from peft_noah.data.preprocessing import Normalizer
from peft_noah.results.statistics import standard_error
from peft_noah.run.context import read_splits
from peft_noah.run.folder import SETTINGS
from peft_noah.run.methods import load_backbone
from peft_noah.run.settings import RunSettings
from peft_noah.training import make_accelerator
from peft_noah.training.evaluation import evaluate
from peft_noah.tuner.adapter_files import load_adapter


def evaluate_adapter(adapter: str, settings: RunSettings, split: str) -> tuple[float, float, int]:
    """Accuracy of a saved adapter, its standard error, and the number of images of the split.

    The adapter of a run folder is scored on the splits of that run where the dataset is the run's: where its seed chose
    images, they are the same ones.

    Args:
        adapter: folder or Hub id.
        settings: which model and data.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        ValueError: on an unknown split, or an adapter that does not fit model and data.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} is not known. Choose train, validation or test.")
    splits = read_splits(_as_its_run(adapter, settings))
    images = getattr(splits, split)
    if images is None:
        raise ValueError(
            f"{splits.source} has no labelled images in the {split} split. Choose another split, or name the one to "
            f"score on by {split}_split."
        )
    accelerator = make_accelerator(settings.mixed_precision)
    model = load_adapter(load_backbone(settings.backbone, splits, settings.seed), adapter).to(accelerator.device)
    accuracy = evaluate(model, images, Normalizer(splits.preprocessing), accelerator)
    return accuracy, standard_error(accuracy, len(images)), len(images)


def _as_its_run(adapter: str, settings: RunSettings) -> RunSettings:
    """The settings with all that chose the splits of the run whose folder holds the adapter, if this is its dataset."""
    path = Path(adapter).parent / SETTINGS
    run = RunSettings.load(path) if path.is_file() else None
    if run is None or _where(run.dataset) != _where(settings.dataset):
        return settings
    chosen = {"seed": run.seed, "shots": run.shots, "num_classes": run.num_classes}
    return replace(settings, **{**run.reading, **settings.reading, **chosen})


def _where(dataset: str | None) -> str | None:
    """A folder by one name, however it was typed; a Hub id as it is."""
    return os.path.realpath(dataset) if dataset is not None and os.path.isdir(dataset) else dataset
