"""Bounded scoring: what it may leave out, and that leaving it out changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import unhurried

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace
from peft_noah.searching.bounding import (
    MIN_CHUNK,
    ImageDifficulty,
    Outcome,
    Threshold,
    bounded_accuracy,
    search_with_bounds,
)
from peft_noah.searching.evolution import Evolution, SearchSettings, search
from peft_noah.searching.result import Bounds, SearchResult


def total(architecture: Architecture) -> int:
    return sum(map(sum, architecture.values()))


class Simulated:
    """Which images each architecture gets right, by chance: some images are hard, larger subnets are a little better."""

    def __init__(self, images: int, seed: int, learns: bool = True) -> None:
        rng = random.Random(seed)
        self.chances = [rng.random() ** 3 for _ in range(images)]
        self.seed, self.learns, self.difficulty_seen, self.evaluations = seed, learns, ImageDifficulty(images), 0

    def right(self, architecture: Architecture) -> list[bool]:
        rng = random.Random(f"{self.seed}:{architecture!r}")
        return [rng.random() > hard * (1 - total(architecture) / 500) for hard in self.chances]

    def full(self, architecture: Architecture) -> float:
        return sum(self.right(architecture)) / len(self.chances)

    def score_all(self, architectures: list[Architecture], thresholds: list[Threshold | None]) -> list[float | Bounds]:
        return [self.score(*pair) for pair in zip(architectures, thresholds, strict=True)]

    def score(self, architecture: Architecture, threshold: Threshold | None) -> float | Bounds:
        right = self.right(architecture)
        outcome = bounded_accuracy(lambda images: [right[image] for image in images], self.difficulty_seen, threshold)
        self.evaluations += len(outcome.seen)
        if self.learns:
            self.difficulty_seen.learn([outcome])
        return outcome.result


def histories(result: SearchResult) -> list[tuple]:
    return [(c.architecture, c.parameters, c.generation, c.origin, c.parents) for c in result.candidates]


# --- a whole search ------------------------------------------------------------------------------------------------

SETTINGS = SearchSettings(population_size=24, generations=5, num_crossover=12, num_mutation=8, num_parents=4)


@settings(unhurried, max_examples=15)
@given(
    images=st.sampled_from([1, 2, 7, 40, 150]),
    parents=st.integers(1, 15),
    seed=st.integers(0, 10**6),
    learns=st.booleans(),
)
def test_a_search_with_bounds_has_the_same_history_parents_and_best(images, parents, seed, learns):
    space, variant = SearchSpace.vtab(6), replace(SETTINGS, num_parents=parents)
    simulated = Simulated(images, seed, learns)
    plain = search(space, simulated.full, total, 120, variant, seed=seed)
    bounded = search_with_bounds(Evolution(space, total, 120, variant, seed=seed), simulated.score_all)
    assert histories(bounded) == histories(plain)
    assert bounded.best == plain.best
    assert bounded.top(max(10, parents)) == plain.top(max(10, parents))
    for known, exact in zip(bounded.candidates, plain.candidates, strict=True):
        if known.state == "scored":
            assert known == exact
        else:
            assert known.state == "bounded" and known.bounds.low <= exact.score <= known.bounds.high


def test_most_images_are_spared_once_the_difficult_ones_are_known():
    space, simulated = SearchSpace.vtab(), Simulated(200, seed=0)
    blind = Simulated(200, seed=0, learns=False)
    results = [search_with_bounds(Evolution(space, total, 180), way.score_all) for way in (simulated, blind)]
    assert histories(results[0]) == histories(results[1])
    assert simulated.evaluations < 0.5 * 750 * 200 < blind.evaluations < 750 * 200
    assert simulated.evaluations == 200 * sum(c.bounds is None for c in results[0].candidates) + sum(
        0 if c.bounds is None else round(200 * (1 - c.bounds.high + c.bounds.low)) for c in results[0].candidates
    )


def test_the_threshold_is_the_tenth_best_so_far_and_moves_after_ten_candidates():
    asked = []

    def score_all(architectures, thresholds):
        asked.append((len(architectures), thresholds))
        return [float(-index - 100 * len(asked)) for index in range(len(architectures))]  # every round is worse

    search_with_bounds(Evolution(SearchSpace.vtab(), total, 300, replace(SETTINGS, generations=2)), score_all)
    assert [count for count, _ in asked] == [10, 10, 4, 10, 10, 4]
    assert asked[0][1] == [None] * 10
    assert {threshold.score for _, thresholds in asked[1:] for threshold in thresholds} == {-109.0}


def test_a_tie_with_the_last_of_the_best_matters_for_a_candidate_with_fewer_parameters_only():
    asked = []

    def score_all(architectures, thresholds):
        asked.extend(zip(map(total, architectures), thresholds, strict=True))
        return [0.5] * len(architectures)

    search_with_bounds(Evolution(SearchSpace.vtab(), total, 300, replace(SETTINGS, generations=1)), score_all)
    assert all(threshold is None for _, threshold in asked[:10])
    tenth = max(parameters for parameters, _ in asked[:10])
    assert all(threshold == Threshold(0.5, strict=parameters >= tenth) for parameters, threshold in asked[10:20])
    strict = [threshold.strict for _, threshold in asked[10:]]
    assert any(strict) and not all(strict)


# --- one candidate ------------------------------------------------------------------------------------------------------


def ask(right: list[bool], asked: list[list[int]]) -> Callable[[list[int]], list[bool]]:
    def check(images):
        asked.append(images)
        return [right[image] for image in images]

    return check


@pytest.mark.parametrize(
    ("threshold", "score", "reached"),
    [
        (Threshold(0.5, True), 0.5, False),
        (Threshold(0.5, False), 0.5, True),
        (Threshold(0.5, True), 0.6, True),
        (Threshold(0.5, False), 0.4, False),
    ],
)
def test_a_threshold_is_reached_from_above_or_met_where_ties_count(threshold, score, reached):
    assert threshold.reached_by(score) is reached


@pytest.mark.parametrize(
    ("threshold", "errors"),
    [
        (Threshold(0.75, True), 1),
        (Threshold(0.75, False), 2),
        (Threshold(1.0, True), 0),
        (Threshold(1.0, False), 1),
        (Threshold(0.0, False), 5),
    ],
)
def test_the_number_of_errors_that_miss_a_threshold_on_four_images(threshold, errors):
    assert threshold.errors_to_miss(4) == errors


def test_without_a_threshold_every_image_is_looked_at_once_in_the_order_of_the_split():
    asked = []
    outcome = bounded_accuracy(ask([True, False, True], asked), ImageDifficulty(3))
    assert asked == [[0, 1, 2]] and outcome == Outcome(2 / 3, (0, 1, 2), (1,))


def test_difficult_images_come_first_and_the_scoring_stops_when_the_threshold_is_out_of_reach():
    difficulty, asked = ImageDifficulty(40), []
    difficulty.learn([Outcome(0.75, tuple(range(40)), tuple(range(30, 40)))] * 9)
    right = [image < 30 for image in range(40)]
    outcome = bounded_accuracy(ask(right, asked), difficulty, Threshold(0.9, True))  # 4 wrong ones miss it
    assert asked == [list(range(30, 38))] and len(asked[0]) == MIN_CHUNK
    assert outcome == Outcome(Bounds(0.0, 0.8), tuple(range(30, 38)), tuple(range(30, 38)))


def test_a_threshold_that_a_perfect_score_misses_needs_no_image():
    assert bounded_accuracy(ask([], []), ImageDifficulty(5), Threshold(1.0, True)) == Outcome(Bounds(0.0, 1.0))


def test_a_candidate_that_meets_the_threshold_with_its_last_image_gets_its_score():
    right = [True] * 20 + [False] * 10
    assert bounded_accuracy(ask(right, []), ImageDifficulty(30), Threshold(20 / 30, False)).result == 20 / 30
    assert isinstance(bounded_accuracy(ask(right, []), ImageDifficulty(30), Threshold(20 / 30, True)).result, float)


@settings(unhurried, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.data())
def test_each_image_is_seen_at_most_once_and_bounds_hold(right, data):
    difficulty = ImageDifficulty(len(right))
    seen = st.lists(st.integers(0, len(right) - 1), unique=True).map(tuple)
    difficulty.learn([Outcome(None, images, images[::2]) for images in data.draw(st.lists(seen, max_size=5))])
    threshold = data.draw(
        st.none()
        | st.builds(Threshold, st.sampled_from([k / len(right) for k in range(len(right) + 1)]), st.booleans())
    )
    asked, exact = [], sum(right) / len(right)
    outcome = bounded_accuracy(ask(right, asked), difficulty, threshold)
    looked = [image for images in asked for image in images]
    assert tuple(looked) == outcome.seen == tuple(difficulty.order()[: len(looked)]) and len(set(looked)) == len(
        looked
    )
    assert outcome.wrong == tuple(image for image in looked if not right[image])
    if isinstance(outcome.result, float):
        assert outcome.result == exact and len(looked) == len(right)
    else:
        assert outcome.result.low <= exact <= outcome.result.high and not threshold.reached_by(outcome.result.high)


# --- what is kept of the images ------------------------------------------------------------------------------------


def test_what_is_learnt_does_not_depend_on_the_order_of_the_outcomes():
    outcomes = [Outcome(0.5, (0, 1), (1,)), Outcome(0.5, (1, 2), (1, 2)), Outcome(None, error="out of memory")]
    counts = []
    for order in (outcomes, outcomes[::-1]):
        difficulty = ImageDifficulty(3)
        difficulty.learn(order)
        counts.append(difficulty.to_dict())
    assert counts[0] == counts[1] == {"seen": [1, 2, 1], "wrong": [0, 2, 1]}


def test_counts_come_back_from_plain_data():
    difficulty = ImageDifficulty(3)
    difficulty.learn([Outcome(0.5, (0, 1), (1,))])
    again = ImageDifficulty.from_dict(difficulty.to_dict(), 3)
    assert again.to_dict() == difficulty.to_dict() and again.order() == [1, 2, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seen": [1, 2]}, "misses wrong"),
        ({"seen": [1, 2], "wrong": [0]}, "one number for each of 2 images"),
        ({"seen": "12", "wrong": [0, 0]}, "one number for each of 2 images"),
        ({"seen": [1, 2], "wrong": [0, 3]}, "a count of a search is 3; give a whole number from 0 to 2"),
        ({"seen": [1, -1], "wrong": [0, 0]}, "a count of a search is -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        ImageDifficulty.from_dict(data, 2)
