"""How well a classifier does on a split of labelled samples, and a decoder on texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

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
    inputs = partial(images.inputs, prepare=normalize)
    for logits, batch in _batches(model, images, images.collate, inputs, accelerator, batch_size):
        predictions, labels = accelerator.gather_for_metrics((predict(logits, images.classes), batch["labels"]))
        metric.add_batch(predictions=predictions.cpu(), references=labels.cpu())
    return metric.compute()["accuracy"]


def compute_logits(
    model: nn.Module, images: LabelledSplit, normalize: Prepare | None, accelerator: Accelerator, batch_size: int = 256
) -> torch.Tensor:
    """Logits of all images, (N, C) in float32 on the CPU, on all processes alike; arguments as in `evaluate`."""
    inputs = partial(images.inputs, prepare=normalize)
    batches = _batches(model, images, images.collate, inputs, accelerator, batch_size)
    return torch.cat([accelerator.gather_for_metrics(logits.float()).cpu() for logits, _ in batches])


def token_loss(
    model: nn.Module,
    texts: Dataset,
    collate: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int = 32,
) -> float:
    """Mean causal language modelling loss per token, in nats, on all processes alike; the model's mode is restored.

    The mean over all N tokens that have a label, ``-1/N * sum(log p(token t+1 | tokens up to t))``, whatever the batches.
    Trainer's ``eval_loss`` is a mean over means of batches, which gives tokens of short texts more weight. ``exp`` of
    ours is the perplexity; its negative is a score for `search`.

    Args:
        model: a decoder with ``.logits`` of shape (B, T, V).
        texts: tokenised texts, as transformers' Trainer takes them.
        collate: makes a batch of some texts: what the model is called with, and `labels`, int64 of shape (B, T): the
            tokens themselves, -100 where none counts. Such as ``DataCollatorForLanguageModeling(tokenizer, mlm=False)``.
        accelerator: devices, processes and precision.
        batch_size: texts per forward pass, over all processes together.

    Raises:
        ValueError: batches have no label per token, or there is no token to predict.
    """
    loss, tokens = 0.0, 0
    for logits, batch in _batches(model, texts, collate, _without_labels, accelerator, batch_size):
        sums, counts = accelerator.gather_for_metrics(_next_token_losses(logits, batch.get("labels")))
        loss, tokens = loss + sums.double().sum().item(), tokens + counts.sum().item()
    if not tokens:
        raise ValueError(
            f"none of the {len(texts)} texts has a token to predict. Give texts of at least two tokens, whose labels are "
            "not all -100."
        )
    return loss / tokens


def _without_labels(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def _next_token_losses(logits: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each text the sum of losses and the number of tokens that have one, both (B,), of (B, T, V) and (B, T)."""
    if labels is None or labels.shape != logits.shape[:-1]:
        found = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise ValueError(
            f"a batch has {found}, and the model's outputs have shape {tuple(logits.shape)}; there must be one label per "
            "token. Use a decoder, and DataCollatorForLanguageModeling(tokenizer, mlm=False) as collate."
        )
    labels = labels[:, 1:]  # the outputs at token t predict token t + 1
    losses = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
    return losses.view(labels.shape).sum(1), (labels != -100).sum(1)


@torch.inference_mode()
def _batches(
    model: nn.Module,
    samples: Dataset,
    collate: Callable[..., Mapping[str, torch.Tensor]],
    inputs: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int,
) -> Iterator[tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    """This process's share of each batch, with its logits; the model's mode is restored."""
    # not the accelerator's own method: it keeps every loader that it has made, and a search makes thousands
    loader = prepare_data_loader(
        DataLoader(samples, max(1, batch_size // accelerator.num_processes), collate_fn=collate),
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
                    logits = model(**inputs(batch)).logits
                yield logits, batch
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
