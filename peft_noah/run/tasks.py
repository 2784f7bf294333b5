"""The kinds of task that a run can have: classes of images, or of texts. Nothing here imports torch before it is called."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_noah.data.preprocessing import Preprocessing
    from peft_noah.data.splits import Splits
    from peft_noah.data.tokenization import Tokenization

IMAGES, TEXTS = "image-classification", "text-classification"
#: by name, what a backbone for it reads
TASKS = {IMAGES: "images", TEXTS: "texts"}


def task_of(model: str | os.PathLike[str]) -> str:
    """The task that a backbone is for.

    Args:
        model: a local folder or a Hub id.

    Raises:
        ValueError: if its family is not known, or it has no config that can be read.
    """
    from peft_noah.data.backbone_config import load_config
    from peft_noah.tuner.backbones import find_backbone

    reads = find_backbone(load_config(model).model_type).reads
    return next(task for task, what in TASKS.items() if what == reads)


def check_task(model: str, task: str) -> None:
    """Refuse a backbone that is for the other task, before any data is read.

    Raises:
        ValueError: says which task it is for, or that transformers has no classifier of its family; or as `task_of`.
    """
    if (other := task_of(model)) != task:
        raise ValueError(
            f"{model} reads {TASKS[other]}, but the task is {task}. Choose another model, or --task {other}."
        )
    _check_classifier(model, task)


def _check_classifier(model: str, task: str) -> None:
    import transformers

    from peft_noah.data.backbone_config import load_config

    known = {
        IMAGES: transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        TEXTS: transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    if type(config := load_config(model)) not in known[task]:
        raise ValueError(
            f"transformers has no {task.partition('-')[0]} classifier for model_type {config.model_type!r}, so that a run has "
            "nothing to train. Adapt it inside a module of your own: `module.inner = get_peft_model(module.inner, NoahConfig(...))`."
        )


def read_preprocessing(settings: Any, backbone: str) -> Preprocessing | Tokenization:
    """How the samples of a run become its backbone's input.

    Args:
        settings: the `RunSettings`.
        backbone: whose image processor or tokenizer it is.
    """
    if settings.task == TEXTS:
        from peft_noah.data.tokenization import Tokenization

        return Tokenization.from_backbone(backbone, settings.max_tokens, settings.backbone)
    from peft_noah.data.preprocessing import Preprocessing

    return Preprocessing.from_backbone(backbone, settings.image_size, settings.image_mean, settings.image_std)


def read_data(settings: Any, preprocessing: Preprocessing | Tokenization) -> Splits:
    """The data of a run, as its backbone reads them; the task that comes with the package where no dataset is named."""
    from dataclasses import replace

    choice = {"seed": settings.seed, "shots": settings.shots, "num_classes": settings.num_classes}
    if settings.task == TEXTS:
        from peft_noah.data.load_texts import load_text_splits

        return load_text_splits(settings.dataset, preprocessing, **settings.reading, **choice)
    from peft_noah.data.load import bundled_task, load_splits

    bundled = settings.dataset is None
    source = bundled_task() if bundled else settings.dataset
    splits = load_splits(source, preprocessing, **settings.reading, **choice, other_tests=settings.other_tests)
    return replace(splits, source="Fashion-MNIST, bundled with peft-noah") if bundled else splits
