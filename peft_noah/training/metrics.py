"""Top-1 accuracy as an `evaluate` metric that is shipped with the package."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

_DESCRIPTION = "Top-1 accuracy: the share of images whose predicted class is the right one."
_INPUTS = """
Args:
    predictions: predicted class index per image.
    references: true class index per image.

Returns:
    accuracy: share of right predictions, from 0 to 1, no unit.
"""


class Accuracy(evaluate.Metric):
    """Top-1 accuracy, `sum(prediction == reference) / n`, from 0 to 1, no unit.

    `evaluate.load("accuracy")` downloads a script and runs it; this is the same metric without the network. It keeps
    its inputs in memory and leaves no file behind, so that it needs no writable cache. `add_batch` and `compute` are
    `evaluate`'s; the inputs are integer tensors, arrays or lists.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 1])
        {'accuracy': 0.5}
    """

    def __init__(self) -> None:
        # evaluate creates its cache folder even when it keeps everything in memory.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, Any]:
        if len(references) == 0:
            raise ValueError("the accuracy of no images is not defined. Add at least one prediction.")
        right = sum(prediction == reference for prediction, reference in zip(predictions, references, strict=True))
        return {"accuracy": right / len(references)}
