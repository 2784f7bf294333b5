"""A saved adapter on its own: its backbone, the names of its classes and its image processor, without the data or run
that made it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel
from torch import nn

from peft_noah.data.backbone_config import check_input, load_config
from peft_noah.data.load import bundled_backbone
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.tokenization import Tokenization
from peft_noah.run.folder import RunFolder
from peft_noah.run.models import load_classifier
from peft_noah.run.names import SETTINGS
from peft_noah.run.settings import RunSettings
from peft_noah.run.tasks import IMAGES, TASKS, TEXTS, task_of
from peft_noah.sources import find_source, same_source
from peft_noah.tuner.adapter_files import find_folder, load_adapter, read_config, stored_classes
from peft_noah.tuner.backbones import BACKBONES, find_backbone
from peft_noah.tuner.config import NoahConfig

logger = logging.getLogger(__name__)

_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter's files say of how to use it.

    Attributes:
        folder: its files, on this machine.
        config: its adapter_config.json.
        backbone: folder or Hub id of the model it belongs to.
        own: what the adapter calls that model, where the user gave another place; else None.
        label_names: names of its classes, in the order of the logits; None: those of the backbone's own classifier, which
            the adapter left as it was.
        preprocessing: how images, or texts, become the model's input.
    """

    folder: Path
    config: NoahConfig
    backbone: str
    own: str | None
    label_names: tuple[str, ...] | None
    preprocessing: Preprocessing | Tokenization

    @classmethod
    def read(cls, adapter: str | os.PathLike[str], model: str | None = None) -> SavedAdapter:
        """Find an adapter and what belongs to it; nothing of the backbone is loaded but its config.

        Names of classes are those in adapter_config.json; an adapter of an earlier version has those of the
        run that it lies in, and else numbers, with a warning. The image processor is the one saved beside the adapter,
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
        classes = stored_classes(folder, find_backbone(load_config(backbone).model_type).head)
        names = None if classes is None else _label_names(folder, config.label_names, classes)
        preprocessing = _preprocessing_of(adapter, folder, backbone, task_of(backbone))
        own = None if model is None else config.base_model_name_or_path
        return cls(folder, config, backbone, own, names, preprocessing)

    def load(self) -> PeftModel:
        """The backbone with the adapter on it, in evaluation mode and float32, on the CPU.

        Raises:
            ValueError: if the two do not belong together.
        """
        backbone = load_classifier(self.backbone, self.label_names, self.preprocessing)
        return on_backbone(str(self.folder), self.config, self.own, self.backbone, backbone).eval()


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
    if PurePath(saved).parts[-3:] == bundled.parts[-3:] and not os.path.isdir(saved):
        return str(bundled)
    return find_source(saved, "the adapter's backbone: its", "Give the place of the same model by --model.")


def on_backbone(adapter: str, config: NoahConfig, own: str | None, name: str, backbone: nn.Module) -> PeftModel:
    """The adapter on a backbone: its own, or another copy of the same weights.

    Args:
        adapter: a folder, or a Hub id.
        config: the adapter's.
        own: the backbone that it names, where the user gave another place; None: the one at hand is found by its name.
        name: of the backbone at hand.
        backbone: the backbone at hand.

    Raises:
        ValueError: if it is another backbone, or nothing tells that it is the same.
    """
    if not own or same_source(own, name):
        return load_adapter(backbone, adapter)
    refusal = f"{adapter!r} was trained on {own!r}, and {name!r} is another backbone"
    if not (config.backbone or {}).get("fingerprint"):
        raise ValueError(
            f"{refusal}, as far as can be told: the adapter has no fingerprint of its weights. Leave --model out, or move the "
            "backbone to where the adapter names it."
        )
    try:
        return load_adapter(backbone, adapter)
    except ValueError as error:
        raise ValueError(f"{refusal}: {error}") from error


def labels_of_its_run(folder: Path) -> Sequence[str] | None:
    """The class names in the run folder that holds an adapter of an older version; None where there is no such run."""
    data = RunFolder(folder.parent).data() if (folder.parent / SETTINGS).is_file() else None
    return None if data is None else data["label_names"]


def _label_names(folder: Path, saved: list[str] | None, classes: int) -> tuple[str, ...]:
    if saved is not None:
        if len(saved) != classes:
            raise ValueError(
                f"the config in {os.fspath(folder)!r} names {len(saved):,} classes, but the classifier has {classes:,}. "
                "Save the adapter again."
            )
        return tuple(saved)
    if (names := labels_of_its_run(folder)) is not None and len(names) == classes:
        return tuple(names)
    logger.warning("%s does not say what its %s classes are called: they are numbered from 0.", folder, f"{classes:,}")
    return tuple(str(index) for index in range(classes))


def adapter_task(adapter: str | os.PathLike[str]) -> str:
    """The task that an adapter was trained for, by the family of its backbone.

    Raises:
        ValueError: if there is no adapter.
    """
    family = (read_config(find_folder(adapter)).backbone or {}).get("model_type")
    return TEXTS if family in BACKBONES and BACKBONES[family].reads == TASKS[TEXTS] else IMAGES


def preprocessing_of(
    adapter: str | os.PathLike[str], folder: Path, settings: RunSettings
) -> Preprocessing | Tokenization:
    """How samples become the input that an adapter was trained on.

    Args:
        adapter: a folder, or a Hub id.
        folder: its files, on this machine.
        settings: the backbone, whose processor or tokenizer stands in, with a warning, where none lies beside the adapter; and
            what a user wants otherwise: size, mean and standard deviation of images, or the most tokens of a text.

    Raises:
        ValueError: if it cannot be used, or the backbone takes no images of that size.
    """
    asked = (settings.image_size, settings.image_mean, settings.image_std, settings.max_tokens)
    return _preprocessing_of(adapter, folder, settings.backbone, settings.task, *asked)


def _preprocessing_of(
    adapter: str | os.PathLike[str],
    folder: Path,
    backbone: str,
    task: str,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    max_tokens: int | None = None,
) -> Preprocessing | Tokenization:
    if task == TEXTS:
        if not os.path.isdir(adapter):
            _fetch(adapter, "tokenizer.json", "tokenizer_config.json")
        return Tokenization.from_adapter(folder, backbone, max_tokens)
    if not (folder / _PROCESSOR).is_file() and not os.path.isdir(adapter):
        _fetch(adapter, _PROCESSOR)
    own = (folder / _PROCESSOR).is_file()
    if not own:
        logger.warning("%s has no %s: images are prepared as its backbone asks for.", adapter, _PROCESSOR)
    found = Preprocessing.from_backbone(folder if own else backbone, image_size, mean, std)
    check_input(load_config(backbone), found.size)
    return found


def _fetch(adapter: str | os.PathLike[str], *names: str) -> None:
    """Fetch those files of an adapter on the Hub that it has."""
    for name in names:
        try:
            hf_hub_download(os.fspath(adapter), name)
        except EntryNotFoundError:
            pass
