"""Races: what they may leave out, and that leaving it out changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import unhurried

from peft_noah.architecture import Architecture, SearchSpace
from peft_noah.searching.evolution import SearchSettings, search
from peft_noah.searching.racing import MIN_CHUNK, Bar, Hardness, Outcome, race
from peft_noah.searching.result import Bounds, SearchResult


def total(architecture: Architecture) -> int:
    return sum(map(sum, architecture.values()))


class Simulated:
    """Which images each architecture gets right, by chance: some images are hard, larger subnets are a little better."""

    def __init__(self, images: int, seed: int, learns: bool = True) -> None:
        rng = random.Random(seed)
        self.difficulty = [rng.random() ** 3 for _ in range(images)]
        self.seed, self.learns, self.hardness, self.evaluations = seed, learns, Hardness(images), 0

    def right(self, architecture: Architecture) -> list[bool]:
        rng = random.Random(f"{self.seed}:{architecture!r}")
        return [rng.random() > hard * (1 - total(architecture) / 500) for hard in self.difficulty]

    def full(self, architecture: Architecture) -> float:
        return sum(self.right(architecture)) / len(self.difficulty)

    def __call__(self, architecture: Architecture, bar: Bar | None) -> float | Bounds:
        right = self.right(architecture)
        outcome = race(lambda images: [right[image] for image in images], self.hardness, bar)
        self.evaluations += len(outcome.seen)
        if self.learns:
            self.hardness.learn([outcome])
        return outcome.result


def histories(result: SearchResult) -> list[tuple]:
    return [(c.architecture, c.parameters, c.generation, c.origin, c.parents) for c in result.candidates]


# --- a whole search ------------------------------------------------------------------------------------------------

RACED = SearchSettings(population_size=24, generations=5, num_crossover=12, num_mutation=8, num_parents=4)


@settings(unhurried, max_examples=15)
@given(
    images=st.sampled_from([1, 2, 7, 40, 150]),
    parents=st.integers(1, 15),
    seed=st.integers(0, 10**6),
    learns=st.booleans(),
)
def test_a_raced_search_has_the_same_history_parents_and_best(images, parents, seed, learns):
    space, variant = SearchSpace.vtab(6), replace(RACED, num_parents=parents)
    simulated = Simulated(images, seed, learns)
    plain = search(space, simulated.full, total, 120, variant, seed=seed)
    raced = search(space, simulated, total, 120, variant, seed=seed, racing=True)
    assert histories(raced) == histories(plain)
    assert raced.best == plain.best
    assert raced.top(max(10, parents)) == plain.top(max(10, parents))
    for known, exact in zip(raced.candidates, plain.candidates, strict=True):
        if known.bounds is None:
            assert known == exact
        else:
            assert known.score is None and known.bounds.low <= exact.score <= known.bounds.high


def test_racing_spares_most_images_once_it_knows_the_hard_ones():
    space, simulated = SearchSpace.vtab(), Simulated(200, seed=0)
    blind = Simulated(200, seed=0, learns=False)
    results = [search(space, score, total, 180, seed=0, racing=True) for score in (simulated, blind)]
    assert histories(results[0]) == histories(results[1])
    assert simulated.evaluations < 0.5 * 750 * 200 < blind.evaluations < 750 * 200
    assert simulated.evaluations == 200 * sum(c.bounds is None for c in results[0].candidates) + sum(
        0 if c.bounds is None else round(200 * (1 - c.bounds.high + c.bounds.low)) for c in results[0].candidates
    )


def test_the_bar_is_the_tenth_best_so_far_and_moves_after_ten_candidates():
    asked = []

    def spread(score, architectures, bars):
        asked.append((len(architectures), bars))
        return [float(-index - 100 * len(asked)) for index in range(len(architectures))]  # every round is worse

    search(SearchSpace.vtab(), None, total, 300, replace(RACED, generations=2), racing=True, map=spread)
    assert [count for count, _ in asked] == [10, 10, 4, 10, 10, 4]
    assert asked[0][1] == [None] * 10
    assert {bar.score for _, bars in asked[1:] for bar in bars} == {-109.0}


def test_a_tie_with_the_last_of_the_best_matters_for_a_candidate_with_fewer_parameters_only():
    bars = []

    def score(architecture, bar):
        bars.append((total(architecture), bar))
        return 0.5

    search(SearchSpace.vtab(), score, total, 300, replace(RACED, generations=1), racing=True)
    assert all(bar is None for _, bar in bars[:10])
    tenth = max(parameters for parameters, _ in bars[:10])
    assert all(bar == Bar(0.5, strict=parameters >= tenth) for parameters, bar in bars[10:20])
    assert any(bar.strict for _, bar in bars[10:]) and not all(bar.strict for _, bar in bars[10:])


# --- one race ------------------------------------------------------------------------------------------------------


def ask(right: list[bool], asked: list[list[int]]):
    def check(images):
        asked.append(images)
        return [right[image] for image in images]

    return check


@pytest.mark.parametrize(
    ("bar", "score", "reached"),
    [
        (Bar(0.5, True), 0.5, False),
        (Bar(0.5, False), 0.5, True),
        (Bar(0.5, True), 0.6, True),
        (Bar(0.5, False), 0.4, False),
    ],
)
def test_a_bar_is_reached_from_above_or_met_where_ties_count(bar, score, reached):
    assert bar.reached_by(score) is reached


@pytest.mark.parametrize(
    ("bar", "wrong"),
    [(Bar(0.75, True), 1), (Bar(0.75, False), 2), (Bar(1.0, True), 0), (Bar(1.0, False), 1), (Bar(0.0, False), 5)],
)
def test_the_number_of_wrong_images_that_miss_a_bar_of_four(bar, wrong):
    assert bar.wrong_to_miss(4) == wrong


def test_without_a_bar_every_image_is_looked_at_once_in_the_order_of_the_split():
    asked = []
    outcome = race(ask([True, False, True], asked), Hardness(3))
    assert asked == [[0, 1, 2]] and outcome == Outcome(2 / 3, (0, 1, 2), (1,))


def test_hard_images_come_first_and_the_race_ends_when_the_bar_is_out_of_reach():
    hardness, asked = Hardness(40), []
    hardness.learn([Outcome(0.75, tuple(range(40)), tuple(range(30, 40)))] * 9)
    right = [image < 30 for image in range(40)]
    outcome = race(ask(right, asked), hardness, Bar(0.9, True))  # 4 wrong ones miss it
    assert asked == [list(range(30, 38))] and len(asked[0]) == MIN_CHUNK
    assert outcome == Outcome(Bounds(0.0, 0.8), tuple(range(30, 38)), tuple(range(30, 38)))


def test_a_bar_that_a_perfect_score_misses_needs_no_image():
    assert race(ask([], []), Hardness(5), Bar(1.0, True)) == Outcome(Bounds(0.0, 1.0))


def test_a_candidate_that_meets_the_bar_with_its_last_image_gets_its_score():
    right = [True] * 20 + [False] * 10
    assert race(ask(right, []), Hardness(30), Bar(20 / 30, False)).result == 20 / 30
    assert isinstance(race(ask(right, []), Hardness(30), Bar(20 / 30, True)).result, float)


@settings(unhurried, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.data())
def test_a_race_sees_each_image_at_most_once_and_its_bounds_hold(right, data):
    hardness = Hardness(len(right))
    seen = st.lists(st.integers(0, len(right) - 1), unique=True).map(tuple)
    hardness.learn([Outcome(None, images, images[::2]) for images in data.draw(st.lists(seen, max_size=5))])
    bar = data.draw(
        st.none() | st.builds(Bar, st.sampled_from([k / len(right) for k in range(len(right) + 1)]), st.booleans())
    )
    asked, exact = [], sum(right) / len(right)
    outcome = race(ask(right, asked), hardness, bar)
    looked = [image for images in asked for image in images]
    assert tuple(looked) == outcome.seen == tuple(hardness.order()[: len(looked)]) and len(set(looked)) == len(looked)
    assert outcome.wrong == tuple(image for image in looked if not right[image])
    if isinstance(outcome.result, float):
        assert outcome.result == exact and len(looked) == len(right)
    else:
        assert outcome.result.low <= exact <= outcome.result.high and not bar.reached_by(outcome.result.high)


# --- what is kept of the images ------------------------------------------------------------------------------------


def test_what_is_learnt_does_not_depend_on_the_order_of_the_outcomes():
    outcomes = [Outcome(0.5, (0, 1), (1,)), Outcome(0.5, (1, 2), (1, 2)), Outcome(None, error="out of memory")]
    counts = []
    for order in (outcomes, outcomes[::-1]):
        hardness = Hardness(3)
        hardness.learn(order)
        counts.append(hardness.to_dict())
    assert counts[0] == counts[1] == {"seen": [1, 2, 1], "wrong": [0, 2, 1]}


def test_counts_come_back_from_plain_data():
    hardness = Hardness(3)
    hardness.learn([Outcome(0.5, (0, 1), (1,))])
    again = Hardness.from_dict(hardness.to_dict(), 3)
    assert again.to_dict() == hardness.to_dict() and again.order() == [1, 2, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seen": [1, 2]}, "misses wrong"),
        ({"seen": [1, 2], "wrong": [0]}, "one number for each of 2 images"),
        ({"seen": "12", "wrong": [0, 0]}, "one number for each of 2 images"),
        ({"seen": [1, 2], "wrong": [0, 3]}, "a count of a race is 3; give a whole number from 0 to 2"),
        ({"seen": [1, -1], "wrong": [0, 0]}, "a count of a race is -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Hardness.from_dict(data, 2)
