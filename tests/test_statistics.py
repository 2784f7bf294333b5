"""Standard errors equal hand-computed ones."""

from __future__ import annotations

import math

import pytest

from peft_noah.statistics import mean_and_standard_error, standard_error


def test_standard_error_of_an_accuracy_is_binomial():
    assert standard_error(0.75, 200) == pytest.approx(0.030618621784789728, rel=1e-15)
    assert standard_error(0.5, 1) == 0.5
    assert standard_error(0.0, 10) == standard_error(1.0, 10) == 0.0


@pytest.mark.parametrize(
    ("accuracy", "images", "message"),
    [
        (75.0, 200, "not percent"),
        (-0.1, 200, "from 0 to 1"),
        (math.nan, 200, "from 0 to 1"),
        (0.5, 0, "1 image or more"),
    ],
)
def test_standard_error_refuses_what_is_no_accuracy(accuracy, images, message):
    with pytest.raises(ValueError, match=message):
        standard_error(accuracy, images)


def test_mean_over_seeds_has_the_sample_standard_error():
    mean, error = mean_and_standard_error([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3, rel=1e-15)
    # deviations -4/3, -1/3, 5/3: squares sum to 42/9, divided by 2, by 3, and the root taken
    assert error == pytest.approx(math.sqrt(42 / 9 / 2 / 3), rel=1e-15)


def test_one_seed_has_a_mean_but_no_standard_error():
    assert mean_and_standard_error([0.7]) == (0.7, None)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_no_values_or_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError):
        mean_and_standard_error(values)
