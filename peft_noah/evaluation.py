"""How well a classifier does on a split of labelled images."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from peft_noah.images import ImageSplit
from peft_noah.metrics import Accuracy
from peft_noah.preprocessing import Normalizer


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSplit, normalize: Normalizer, accelerator: Accelerator, batch_size: int = 256
) -> float:
    """Top-1 accuracy of a classifier, a fraction, on all processes alike; the model's mode is restored.

    Args:
        model: a classifier called as ``model(pixel_values=...)`` with ``.logits``.
        images: uint8 images and labels.
        normalize: uint8 pixels to the backbone's input.
        accelerator: devices, processes and precision.
        batch_size: images per forward pass, over all processes together.
    """
    loader = accelerator.prepare_data_loader(DataLoader(images, batch_size, collate_fn=images.collate))
    metric, was_training = Accuracy(), model.training
    model.eval()
    for batch in loader:
        with accelerator.autocast():
            predictions = model(pixel_values=normalize(batch["pixel_values"])).logits.argmax(-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, batch["labels"]))
        metric.add_batch(predictions=predictions.cpu(), references=labels.cpu())
    model.train(was_training)
    return metric.compute()["accuracy"]
