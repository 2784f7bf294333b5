"""The standard errors reported beside every accuracy, and when a lead is one, from plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error, with what each seed gave, so that two can be compared seed by seed.

    Attributes:
        mean: the mean, in the unit of the values.
        error: its standard error, in the same unit; None where nothing is known of it.
        by_seed: the value of every seed; empty where parts of unequal seeds were put together.
        single: whether one seed is all there is, so that the error is over images and not over seeds.
    """

    mean: float
    error: float | None
    by_seed: Mapping[int, float] = field(default_factory=dict)
    single: bool = False

    @classmethod
    def over_seeds(cls, measured: Mapping[int, tuple[float, int]]) -> Estimate:
        """From accuracy (0 to 1) and number of images by seed.

        The error is the standard error over seeds; of a single seed the binomial one over its images.

        Raises:
            ValueError: there are no seeds, or an accuracy is none.
        """
        values = {seed: accuracy for seed, (accuracy, _) in measured.items()}
        mean, error = mean_and_standard_error(list(values.values()))
        if error is None:
            error = standard_error(*next(iter(measured.values())))
        return cls(mean, error, values, single=len(values) == 1)

    @classmethod
    def combine(cls, parts: Sequence[Estimate]) -> Estimate:
        """The plain mean of ``k`` estimates, such as the tasks of a group.

        Where all parts have the same two or more seeds, they are averaged seed by seed. The error is the standard error of
        these averages, so it holds what a seed does to several tasks at once. Else the errors are propagated as those of
        independent parts, ``sqrt(sum(e^2)) / k``.

        Raises:
            ValueError: there are no parts.
        """
        if not parts:
            raise ValueError("no estimates to take the mean of: give one or more.")
        seeds = parts[0].by_seed.keys()
        mean = statistics.fmean(part.mean for part in parts)
        if seeds and all(part.by_seed.keys() == seeds for part in parts):
            by_seed = {seed: statistics.fmean(part.by_seed[seed] for part in parts) for seed in seeds}
            if len(seeds) > 1:
                return cls(mean, mean_and_standard_error(list(by_seed.values()))[1], by_seed)
        else:
            by_seed = {}
        single = any(part.single for part in parts)
        if any(part.error is None for part in parts):
            return cls(mean, None, by_seed, single)
        return cls(mean, math.hypot(*(part.error for part in parts)) / len(parts), by_seed, single)

    def minus(self, other: Estimate) -> tuple[float, float | None]:
        """How much larger this is than ``other``, and the standard error of that difference.

        Over paired seeds where both have several in common; else the difference of the means with both errors combined
        as those of independent numbers, ``sqrt(a^2 + b^2)``.
        """
        paired = [value - other.by_seed[seed] for seed, value in self.by_seed.items() if seed in other.by_seed]
        if len(paired) > 1:
            return mean_and_standard_error(paired)
        known = self.error is not None and other.error is not None
        return self.mean - other.mean, math.hypot(self.error, other.error) if known else None

    def leads(self, other: Estimate) -> bool:
        """Whether this is larger than ``other`` by more than the standard error of the difference."""
        difference, error = self.minus(other)
        return error is not None and difference > error


def clear_winner(estimates: Mapping[str, Estimate]) -> str | None:
    """The name of the largest estimate where it leads the runner-up by more than the error of that lead, else None."""
    ranked = sorted(estimates, key=lambda name: -estimates[name].mean)
    return ranked[0] if len(ranked) > 1 and estimates[ranked[0]].leads(estimates[ranked[1]]) else None


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its 95 % confidence interval, all in the unit of the values.

    Attributes:
        mean: the mean difference.
        error: its standard error; None for one pair.
        low, high: the interval ``mean -+ t * error``, t the quantile of Student's t distribution with n - 1 degrees of
            freedom (4.30 for three pairs); None for one pair.
        n: number of pairs.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None
    n: int


def paired_difference(differences: Sequence[float], confidence: float = 0.95) -> Difference:
    """Mean, standard error and confidence interval of ``n`` paired differences.

    Raises:
        ValueError: there are no differences, one is not finite, or the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not allowed: give a share between 0 and 1.")
    mean, error = mean_and_standard_error(differences)
    if error is None:
        return Difference(mean, None, None, None, 1)
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, without a second of imports

    half = float(stdtrit(len(differences) - 1, 0.5 + confidence / 2)) * error
    return Difference(mean, error, mean - half, mean + half, len(differences))
