"""The standard errors reported beside every accuracy, from plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def standard_error(accuracy: float, num_images: int) -> float:
    """Standard error of one accuracy over n images, the binomial `sqrt(p (1 - p) / n)`, no unit.

    It says how far the accuracy would move on other images of the same kind: 3 points on 200 images at p = 0.75.

    Args:
        accuracy: p, the share of right predictions, from 0 to 1.
        num_images: n, the number of images it was measured on, 1 or more.

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy {accuracy} is not allowed: give a share from 0 to 1, not percent.")
    if num_images < 1:
        raise ValueError(f"an accuracy over {num_images} images has no standard error: give 1 image or more.")
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over repeats, such as seeds, and its standard error `s / sqrt(n)`, in the unit of the values.

    s is the sample standard deviation, `sqrt(sum((x - mean)^2) / (n - 1))`.

    Args:
        values: n results, one per repeat.

    Returns:
        The mean and its standard error; the error is None for one value, which says nothing of the spread.

    Raises:
        ValueError: there are no values, or one is NaN or infinite.
    """
    if not values:
        raise ValueError("no values to take the mean of: give one result or more.")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"the values {list(values)} are not all finite numbers. Leave out what failed.")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))
