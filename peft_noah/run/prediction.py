"""Labels for new images by a saved adapter: what it was trained for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from peft import PeftModel

from peft_noah.data.images import decode_image
from peft_noah.data.preprocessing import Normalizer, Preprocessing
from peft_noah.fast import fast_forward
from peft_noah.jsonfile import MAX_COUNT, check_int
from peft_noah.run.saved_adapter import SavedAdapter
from peft_noah.training import make_accelerator

MAX_THREADS = 8


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image file.

    Attributes:
        file: its path, as it was given.
        labels: names of the likeliest classes, the likeliest first; empty where the image cannot be read.
        probabilities: of these classes, from 0 to 1: the softmax over all classes.
        error: why the image cannot be read; None: it was.
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
    check_int(top, "top", 1, MAX_COUNT)
    check_int(batch_size, "batch_size", 1, MAX_COUNT)
    saved = SavedAdapter.read(adapter, model)
    accelerator = make_accelerator(mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"images are labelled in one process, and a launcher started {accelerator.num_processes}. Start it without one."
        )
    classifier = _Classifier(saved.load(), saved.preprocessing, accelerator, top)
    return _label(map(os.fspath, files), classifier, saved.preprocessing, batch_size)


class _Classifier:
    """From pixels to the likeliest classes."""

    def __init__(self, model: PeftModel, preprocessing: Preprocessing, accelerator: Accelerator, top: int) -> None:
        self.model = model.to(accelerator.device)
        self.accelerator, self.normalize = accelerator, Normalizer(preprocessing)
        names = model.get_base_model().config.id2label
        self.names = [names[index] for index in range(len(names))]
        if top > len(self.names):
            raise ValueError(f"top is {top:,}, but the model knows {len(self.names):,} classes. Give at most that.")
        self.top = top

    # inside, not around the generator that calls it: the mode would spread to whoever reads the predictions
    @torch.inference_mode()
    def __call__(self, files: list[str], pixels: list[torch.Tensor]) -> list[Prediction]:
        with self.accelerator.autocast():
            inputs = self.normalize(torch.stack(pixels).to(self.accelerator.device))
            logits = self.model(pixel_values=inputs).logits.float()
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
    with fast_forward(classifier.model):
        while batch := list(islice(decoded, batch_size)):
            readable = [(file, pixels) for file, pixels in batch if isinstance(pixels, torch.Tensor)]
            labelled = iter(classifier(*map(list, zip(*readable, strict=True))) if readable else ())
            for file, found in batch:
                yield Prediction(file, error=found) if isinstance(found, str) else next(labelled)


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
