"""Labels for new images or texts by a saved adapter: what it was trained for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate.utils import send_to_device

from peft_noah.data.decoding import decode_image
from peft_noah.data.preprocessing import Preprocessing
from peft_noah.data.texts import pad_texts, text_fault
from peft_noah.data.tokenization import Tokenization
from peft_noah.fast import fast_forward
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.run.saved_adapter import SavedAdapter
from peft_noah.training import make_accelerator

MAX_THREADS = 8


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image file, or one text.

    Attributes:
        file: its path, as it was given; of a text, its name.
        labels: names of the likeliest classes, the likeliest first; empty where the image or text cannot be read.
        probabilities: of these classes, from 0 to 1: the softmax over all classes.
        error: why it cannot be read; None: it was.
    """

    file: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def predict(
    adapter: str | os.PathLike[str],
    files: Iterable[str | os.PathLike[str]],
    *,
    model: str | None = None,
    top: int = 1,
    batch_size: int = 64,
    mixed_precision: str | None = None,
) -> Iterator[Prediction]:
    """Label image files by a saved adapter, in their order, however many there are.

    The adapter and its backbone are loaded when the function is called. Files are read as predictions are asked for: some
    threads decode the next images while the model computes, and no more than two batches are in memory. An image that
    cannot be read gives a prediction without labels that says why.

    Args:
        adapter: a folder such as ``runs/mine/adapter``, or a Hub id.
        files: paths of image files, such as `peft_noah.data.image_paths.find_images` gives.
        model: folder or Hub id of the adapter's backbone; None: where the adapter says.
        top: how many of the likeliest classes to name, at most all.
        batch_size: images per forward pass.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``; None: as Accelerate was told, else ``"no"``.

    Raises:
        ValueError: if the adapter or its backbone cannot be used, or a number is not allowed; while predicting, if the
            model's outputs are not finite.

    Examples:
        >>> for prediction in predict("runs/mine/adapter", ["a.jpg", "b.jpg"]):  # doctest: +SKIP
        ...     print(prediction.file, prediction.labels[0], prediction.probabilities[0])
    """
    check_int(batch_size, "batch_size", 1, MAX_COUNT)
    saved = SavedAdapter.read(adapter, model)
    if saved.preprocessing.what != "image":
        raise ValueError(f"{os.fspath(adapter)!r} was trained on texts: label them by predict_texts.")
    classifier = _Classifier(saved, mixed_precision, top)
    return _label(map(os.fspath, files), classifier, saved.preprocessing, batch_size)


def predict_texts(
    adapter: str | os.PathLike[str],
    texts: Iterable[str | tuple[str, str]],
    *,
    model: str | None = None,
    top: int = 1,
    batch_size: int = 64,
    mixed_precision: str | None = None,
) -> Iterator[Prediction]:
    """Label texts by a saved adapter, in their order; arguments and errors as of `predict`.

    An empty text gives a prediction without labels that says why.

    Args:
        adapter: as for `predict`, trained with the task text-classification.
        texts: each a text, or a name and a text; a text without a name is called by its number, from 1.
        model, top, batch_size, mixed_precision: as for `predict`.

    Examples:
        >>> for prediction in predict_texts("runs/mine/best", ["What a film!"]):  # doctest: +SKIP
        ...     print(prediction.labels[0], prediction.probabilities[0])
    """
    check_int(batch_size, "batch_size", 1, MAX_COUNT)
    saved = SavedAdapter.read(adapter, model)
    if saved.preprocessing.what != "text":
        raise ValueError(f"{os.fspath(adapter)!r} was trained on images: label them by predict.")
    classifier = _Classifier(saved, mixed_precision, top)
    named = (text if isinstance(text, tuple) else (str(number), text) for number, text in enumerate(texts, 1))
    return _label_texts(named, classifier, saved.preprocessing, batch_size)


class _Classifier:
    """From pixels, or tokens, to the likeliest classes."""

    def __init__(self, saved: SavedAdapter, mixed_precision: str | None, top: int) -> None:
        check_int(top, "top", 1, MAX_COUNT)
        self.accelerator = accelerator = make_accelerator(mixed_precision)
        if accelerator.num_processes > 1:
            raise ValueError(
                f"{saved.preprocessing.what}s are labelled in one process, and a launcher started "
                f"{accelerator.num_processes}. Start it without one."
            )
        self.model = saved.load().to(accelerator.device)
        names = self.model.get_base_model().config.id2label
        self.names = [names[index] for index in range(len(names))]
        if top > len(self.names):
            raise ValueError(f"top is {top:,}, but the model knows {len(self.names):,} classes. Give at most that.")
        self.top = top

    # inside, not around the generator that calls it: the mode would spread to whoever reads the predictions
    @torch.inference_mode()
    def __call__(self, files: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> list[Prediction]:
        """Predictions for samples of these names, from what the model is called with."""
        with self.accelerator.autocast():
            logits = self.model(**send_to_device(dict(inputs), self.accelerator.device)).logits.float()
        if not torch.isfinite(logits).all():
            bad = files[int((~torch.isfinite(logits)).any(-1).nonzero()[0])]
            raise ValueError(
                f"the model's outputs for {bad} are not finite. Compute with mixed precision 'no', or train the adapter again."
            )
        best = logits.softmax(-1).topk(self.top)
        return [
            Prediction(file, tuple(self.names[index] for index in indices), tuple(probabilities))
            for file, indices, probabilities in zip(files, best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _label(
    files: Iterator[str], classifier: _Classifier, preprocessing: Preprocessing, batch_size: int
) -> Iterator[Prediction]:
    decoded = _decode_ahead(files, preprocessing, batch_size)
    normalize, device = preprocessing.normalizer, classifier.accelerator.device

    def inputs(pixels: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"pixel_values": normalize(torch.stack(pixels).to(device))}

    yield from _label_batches(decoded, classifier, inputs, batch_size)


def _label_texts(
    named: Iterator[tuple[str, str]], classifier: _Classifier, tokenization: Tokenization, batch_size: int
) -> Iterator[Prediction]:
    while batch := list(islice(named, batch_size)):
        faults = [text_fault(text) for _, text in batch]
        tokens = iter(tokenization.apply([text for (_, text), fault in zip(batch, faults, strict=True) if not fault]))
        ready = ((name, fault or next(tokens)) for (name, _), fault in zip(batch, faults, strict=True))
        yield from _label_batches(ready, classifier, lambda texts: pad_texts(texts, tokenization.pad), batch_size)


def _label_batches(
    samples: Iterator[tuple[str, torch.Tensor | str]],
    classifier: _Classifier,
    inputs: Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]],
    batch_size: int,
) -> Iterator[Prediction]:
    """Predictions for named samples, of which one that cannot be read is the reason why."""
    with fast_forward(classifier.model):
        while batch := list(islice(samples, batch_size)):
            names = [name for name, sample in batch if isinstance(sample, torch.Tensor)]
            readable = [sample for _, sample in batch if isinstance(sample, torch.Tensor)]
            labelled = iter(classifier(names, inputs(readable)) if readable else ())
            for name, sample in batch:
                yield Prediction(name, error=sample) if isinstance(sample, str) else next(labelled)


def _decode_ahead(
    files: Iterator[str], preprocessing: Preprocessing, ahead: int
) -> Iterator[tuple[str, torch.Tensor | str]]:
    """Each file with its pixels, (3, H, W), or why they cannot be read; up to ``ahead`` of the next are in work."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "peft-noah-decode")
    waiting: deque[tuple[str, Future]] = deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(_decode, file, preprocessing)))
            if len(waiting) > ahead:
                first, pixels = waiting.popleft()
                yield first, pixels.result()
        while waiting:
            first, pixels = waiting.popleft()
            yield first, pixels.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(file: str, preprocessing: Preprocessing) -> torch.Tensor | str:
    try:
        with open(file, "rb") as opened:
            encoded = opened.read()
        return preprocessing.apply(decode_image(encoded))
    except (ValueError, OSError) as error:
        return str(error)
