"""Standard errors equal hand-computed ones."""

from __future__ import annotations

import math

import pytest

from peft_noah.results.statistics import (
    Difference,
    Estimate,
    clear_winner,
    mean_and_standard_error,
    paired_difference,
    standard_error,
)


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


# --- estimates over seeds ----------------------------------------------------------------------------------------


def over(**by_seed: float) -> Estimate:
    """An estimate from accuracies over 100 images, by s0, s1, ..."""
    return Estimate.over_seeds({int(name[1:]): (value, 100) for name, value in by_seed.items()})


def test_an_estimate_has_the_error_over_seeds_or_of_one_seed_over_images():
    several = over(s0=0.7, s1=0.8, s2=0.9)
    assert several.mean == pytest.approx(0.8) and several.error == pytest.approx(0.1 / math.sqrt(3))
    one = over(s4=0.8)
    assert (one.mean, one.error, one.single) == (0.8, pytest.approx(0.04), True)
    assert not several.single


def test_a_mean_of_tasks_with_the_same_seeds_has_the_error_of_its_seed_by_seed_means():
    # What a seed does to both tasks is in the error: means of 0.75, 0.65 and 0.85, standard deviation 0.1.
    mean = Estimate.combine([over(s0=0.8, s1=0.7, s2=0.9), over(s0=0.7, s1=0.6, s2=0.8)])
    assert mean.mean == pytest.approx(0.75) and mean.error == pytest.approx(0.1 / math.sqrt(3))
    # Tasks that a seed moves in opposite ways: their mean is the same for all seeds.
    assert Estimate.combine([over(s0=0.8, s1=0.6), over(s0=0.6, s1=0.8)]).error == pytest.approx(0)


def test_a_mean_of_tasks_with_other_seeds_has_the_propagated_error():
    # Errors 0.1 (0.1 * sqrt(2) / sqrt(2)) and 0.05, so sqrt(0.01 + 0.0025) / 2.
    mean = Estimate.combine([over(s0=0.7, s1=0.9), over(s0=0.6, s2=0.7)])
    assert mean.error == pytest.approx(math.sqrt(0.0125) / 2) and not mean.by_seed
    # One seed each: binomial errors of 0.04 and 0.05.
    single = Estimate.combine([over(s0=0.8), over(s0=0.5)])
    assert single.error == pytest.approx(math.hypot(0.04, 0.05) / 2) and single.single
    assert Estimate.combine([over(s0=0.8), Estimate(0.5, None)]).error is None


def test_a_difference_is_paired_over_seeds_where_both_have_several():
    a, b = over(s0=0.7, s1=0.8, s2=0.9), over(s0=0.69, s1=0.79, s2=0.87, s3=0.1)
    difference, error = a.minus(b)
    # 0.01, 0.01, 0.03: mean 0.05 / 3, standard deviation 0.02 / sqrt(3), over sqrt(3).
    assert (difference, error) == (pytest.approx(0.05 / 3), pytest.approx(0.02 / 3))
    assert a.leads(b) and not b.leads(a)
    lone = over(s7=0.8)
    assert a.minus(lone) == (pytest.approx(0), pytest.approx(math.hypot(a.error, 0.04)))
    assert Estimate(0.9, None).minus(a)[1] is None and not Estimate(0.99, None).leads(a)


def test_the_winner_must_lead_the_runner_up_by_more_than_the_error_of_that_lead():
    low, high = over(s0=0.70, s1=0.72), over(s0=0.71, s1=0.74)
    assert clear_winner({"low": low, "high": high}) == "high"  # leads of 0.01 and 0.02: 0.015 ± 0.005
    assert clear_winner({"low": low, "other": over(s0=0.74, s1=0.69)}) is None
    assert clear_winner({"low": low}) is None is clear_winner({})


# --- paired differences ------------------------------------------------------------------------------------------


def test_a_confidence_interval_is_that_of_students_t():
    found = paired_difference([0.01, 0.02, 0.06])
    # Mean 0.03, standard deviation sqrt((4 + 1 + 9) / 2) / 100, t(0.975, 2) = 4.30265 from the tables.
    error = math.sqrt(7) / 100 / math.sqrt(3)
    assert (found.mean, found.error, found.n) == (pytest.approx(0.03), pytest.approx(error), 3)
    assert found.low == pytest.approx(0.03 - 4.302653 * error, rel=1e-6)
    assert found.high == pytest.approx(0.03 + 4.302653 * error, rel=1e-6)


def test_one_pair_has_no_interval_and_equal_pairs_one_of_width_zero():
    assert paired_difference([0.02]) == Difference(0.02, None, None, None, 1)
    assert paired_difference([0.5, 0.5]) == Difference(0.5, 0, 0.5, 0.5, 2)


def test_an_interval_needs_pairs_and_a_confidence():
    with pytest.raises(ValueError, match="no values"):
        paired_difference([])
    with pytest.raises(ValueError, match="confidence 95"):
        paired_difference([0.1, 0.2], confidence=95)
