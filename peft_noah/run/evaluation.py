"""How well a saved adapter does, without the run that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft_noah.data.splits import Splits
from peft_noah.results.statistics import standard_error
from peft_noah.run.context import read_splits
from peft_noah.run.inputs import class_changes
from peft_noah.run.models import load_backbone
from peft_noah.run.names import SETTINGS
from peft_noah.run.saved_adapter import backbone_of, labels_of_its_run, on_backbone, preprocessing_of
from peft_noah.run.settings import RunSettings
from peft_noah.sources import same_source, stored_path
from peft_noah.training import make_accelerator
from peft_noah.training.evaluation import evaluate
from peft_noah.tuner.adapter_files import find_folder, read_config


def evaluate_adapter(adapter: str, settings: RunSettings, split: str) -> tuple[float, float, int]:
    """Accuracy of a saved adapter, its standard error, and the number of images of the split.

    The adapter of a run folder is scored on the splits of that run where the dataset is the run's: where its seed chose
    images, they are the same ones.

    Args:
        adapter: folder or Hub id.
        settings: which model and data; model None: the backbone that the adapter names. Another one must have the same
            weights, by their fingerprint. Size, mean and standard deviation of images are those of the processor saved
            beside the adapter, unless the settings name others.
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        ValueError: on an unknown split, an adapter that does not fit model and data, or classes that are not the adapter's.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split {split!r} is not known. Choose train, validation or test.")
    adapter = stored_path(adapter)
    folder = find_folder(adapter)
    config = read_config(folder)
    own = config.base_model_name_or_path if settings.model is not None else None
    settings = replace(settings, model=backbone_of(adapter, config.base_model_name_or_path, settings.model))
    preprocessing = preprocessing_of(adapter, folder, settings)
    splits = read_splits(_as_its_run(adapter, settings), preprocessing)
    _check_classes(adapter, config.label_names or labels_of_its_run(folder), splits)
    images = getattr(splits, split)
    if images is None:
        raise ValueError(
            f"{splits.source} has no labelled {splits.what}s in the {split} split. Choose another split, or name the one to "
            f"score on by {split}_split."
        )
    accelerator = make_accelerator(settings.mixed_precision)
    model = on_backbone(
        adapter, config, own, settings.backbone, load_backbone(settings.backbone, splits, settings.seed)
    )
    accuracy = evaluate(model.to(accelerator.device), images, splits.preprocessing.normalizer, accelerator)
    return accuracy, standard_error(accuracy, len(images)), len(images)


def _check_classes(adapter: str, known: Sequence[str] | None, splits: Splits) -> None:
    if known is not None and (changes := class_changes(known, splits.label_names)):
        raise ValueError(
            f"the classes of {splits.source} are not those that {adapter!r} was trained on: {'; '.join(changes)}. Give the "
            "adapter's own task by --dataset, or name the classes as there."
        )


def _as_its_run(adapter: str, settings: RunSettings) -> RunSettings:
    """The settings with all that chose the splits of the run whose folder holds the adapter, if this is its dataset."""
    path = Path(adapter).parent / SETTINGS
    run = RunSettings.load(path) if path.is_file() else None
    if run is None or not same_source(run.dataset, settings.dataset):
        return settings
    chosen = {"seed": run.seed, "shots": run.shots, "num_classes": run.num_classes}
    return replace(settings, **{**run.reading, **settings.reading, **chosen})
