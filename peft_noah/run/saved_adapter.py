"""A saved adapter on its own: its backbone, the names of its classes and its image processor, without the data or run
that made it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel
from transformers import AutoConfig

from peft_noah.data.load import bundled_backbone
from peft_noah.data.preprocessing import Preprocessing, check_input
from peft_noah.results.report import RESULTS_JSON, RunReport
from peft_noah.run.methods import load_classifier
from peft_noah.sources import find_source
from peft_noah.tuner.adapter_files import find_folder, load_adapter, read_config, stored_classes
from peft_noah.tuner.backbones import find_backbone

logger = logging.getLogger(__name__)

_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter's files say of how to use it.

    Attributes:
        folder: its files, on this machine.
        backbone: folder or Hub id of the model it belongs to.
        label_names: names of its classes, in the order of the logits; None: those of the backbone's own classifier, which
            the adapter left as it was.
        preprocessing: how images become the model's input.
    """

    folder: Path
    backbone: str
    label_names: tuple[str, ...] | None
    preprocessing: Preprocessing

    @classmethod
    def read(cls, adapter: str | os.PathLike[str], model: str | None = None) -> SavedAdapter:
        """Find an adapter and what belongs to it; nothing of the backbone is loaded but its config.

        Names of classes are those in adapter_config.json; an adapter of an earlier version has the names in the
        results.json of its run, and else numbers, with a warning. The image processor is the one saved beside the adapter,
        and else the backbone's, with a warning.

        Args:
            adapter: a folder, or a Hub id.
            model: where its backbone is, if not where the adapter says.

        Raises:
            ValueError: if there is no adapter, its files are damaged or contradict each other, or its backbone is not there.
        """
        folder = find_folder(adapter)
        config = read_config(folder)
        backbone = backbone_of(adapter, config.base_model_name_or_path, model)
        backbone_config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
        classes = stored_classes(folder, find_backbone(backbone_config.model_type).head)
        names = None if classes is None else _label_names(folder, config.label_names, classes)
        preprocessing = _preprocessing(adapter, folder, backbone)
        check_input(backbone_config, preprocessing.size)
        return cls(folder, backbone, names, preprocessing)

    def load(self) -> PeftModel:
        """The backbone with the adapter on it, in evaluation mode and float32, on the CPU.

        Raises:
            ValueError: if the two do not belong together.
        """
        backbone = load_classifier(self.backbone, self.label_names, self.preprocessing.size)
        return load_adapter(backbone, self.folder).eval()


def backbone_of(adapter: str | os.PathLike[str], saved: str | None, given: str | None) -> str:
    """Where the backbone of an adapter is.

    Args:
        adapter: a folder, or a Hub id, for messages.
        saved: what its config names.
        given: what a user names; None: nothing.

    Raises:
        ValueError: if nothing is named, or there is no such folder and no such Hub id.
    """
    if given is not None:
        return find_source(given, "model", "Give a folder with config.json, or a Hub id.")
    if not saved:
        raise ValueError(f"{os.fspath(adapter)!r} does not say which backbone it was made for. Give it by --model.")
    bundled = bundled_backbone()
    # by the end of its path: the package lies elsewhere on another machine
    if Path(saved).parts[-3:] == bundled.parts[-3:] and not os.path.isdir(saved):
        return str(bundled)
    return find_source(saved, "the adapter's backbone: its", "Give the place of the same model by --model.")


def _label_names(folder: Path, saved: list[str] | None, classes: int) -> tuple[str, ...]:
    if saved is not None:
        if len(saved) != classes:
            raise ValueError(
                f"the config in {os.fspath(folder)!r} names {len(saved):,} classes, but the classifier has {classes:,}. "
                "Save the adapter again."
            )
        return tuple(saved)
    if (names := _names_of_run(folder.parent)) is not None and len(names) == classes:
        return names
    logger.warning("%s does not say what its %s classes are called: they are numbered from 0.", folder, f"{classes:,}")
    return tuple(str(index) for index in range(classes))


def _names_of_run(folder: Path) -> tuple[str, ...] | None:
    """The names of classes in a run's results; None where they cannot be read, since the file may be of anything."""
    try:
        names = RunReport.load(folder / RESULTS_JSON).task.get("label_names")
    except ValueError:
        return None
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else None


def _preprocessing(adapter: str | os.PathLike[str], folder: Path, backbone: str) -> Preprocessing:
    if not (folder / _PROCESSOR).is_file() and not os.path.isdir(adapter):
        try:
            hf_hub_download(os.fspath(adapter), _PROCESSOR)
        except EntryNotFoundError:
            pass
    if (folder / _PROCESSOR).is_file():
        return Preprocessing.from_backbone(folder)
    logger.warning("%s has no %s: images are prepared as its backbone asks for.", adapter, _PROCESSOR)
    return Preprocessing.from_backbone(backbone)
