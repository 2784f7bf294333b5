"""How well a classifier does on a split of labelled images, or of other samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader

from peft_noah.data.labelled import LabelledSplit, Prepare
from peft_noah.fast import fast_forward
from peft_noah.training.metrics import Accuracy


def evaluate(
    model: nn.Module, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator, batch_size: int = 256
) -> float:
    """Top-1 accuracy of a classifier, a fraction, on all processes alike; the model's mode is restored.

    A split with `classes` is scored among them: the other logits are left out before the largest is taken. So
    ImageNet-A and -R count among their 200 classes, where the authors' code counts among all 1,000.

    Args:
        model: a classifier with ``.logits``, called with what `images.inputs` gives.
        images: a split of labelled samples, such as an `ImageSplit`.
        normalize: uint8 pixels to the backbone's input; None where samples need no such step.
        accelerator: devices, processes and precision.
        batch_size: images per forward pass, over all processes together.

    Raises:
        ValueError: the model has fewer outputs than `images.classes` asks for.
    """
    metric = Accuracy()
    for logits, labels in _batches(model, images, normalize, accelerator, batch_size):
        predictions, labels = accelerator.gather_for_metrics((predict(logits, images.classes), labels))
        metric.add_batch(predictions=predictions.cpu(), references=labels.cpu())
    return metric.compute()["accuracy"]


def compute_logits(
    model: nn.Module, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator, batch_size: int = 256
) -> torch.Tensor:
    """Logits of all images, (N, C) in float32 on the CPU, on all processes alike; arguments as in `evaluate`."""
    batches = _batches(model, images, normalize, accelerator, batch_size)
    return torch.cat([accelerator.gather_for_metrics(logits.float()).cpu() for logits, _ in batches])


@torch.inference_mode()
def _batches(
    model: nn.Module, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, C) and labels (B,) of this process's share of each batch; the model's mode is restored."""
    # not the accelerator's own method: it keeps every loader that it has made, and a search makes thousands
    loader = prepare_data_loader(
        DataLoader(images, max(1, batch_size // accelerator.num_processes), collate_fn=images.collate),
        accelerator.device,
        accelerator.num_processes,
        accelerator.process_index,
        put_on_device=True,
    )
    was_training = model.training
    model.eval()
    try:
        with fast_forward(model):
            for batch in loader:
                with accelerator.autocast():
                    logits = model(**images.inputs(batch, normalize)).logits
                yield logits, batch["labels"]
    finally:
        model.train(was_training)


def predict(logits: torch.Tensor, classes: tuple[int, ...] | None) -> torch.Tensor:
    """The class index of the largest logit, (B,) of (B, C), among `classes` where given.

    Raises:
        ValueError: the model has fewer outputs than `classes` asks for.
    """
    if classes is None:
        return logits.argmax(-1)
    if classes[-1] >= logits.shape[-1]:
        raise ValueError(
            f"the images are scored among classes up to {classes[-1]}, but the model has {logits.shape[-1]} outputs. "
            "Use a model that was trained on the same classes."
        )
    allowed = torch.tensor(classes, device=logits.device)
    return allowed[logits[:, allowed].argmax(-1)]
