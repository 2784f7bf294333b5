"""The evolutionary search."""

from __future__ import annotations

import doctest
import math
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_search_space import Script, spaces, unhurried

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace
from peft_noah.searching.bounding import search_with_bounds
from peft_noah.searching.budget import BudgetError
from peft_noah.searching.evolution import (
    Evolution,
    RandomSearch,
    SearchResult,
    SearchSettings,
    crossover,
    mutate,
    random_search,
    search,
    shrink,
)
from peft_noah.searching.result import Bounds, Proposal

SMALL = SearchSettings(population_size=10, generations=4, num_parents=3, num_crossover=4, num_mutation=4)


def total(architecture: Architecture) -> int:
    """Counts 1 per dim."""
    return sum(map(sum, architecture.values()))


def wiggle(architecture: Architecture) -> float:
    """A score with many values and no ties to speak of."""
    flat = [dim for name in sorted(architecture) for dim in architecture[name]]
    return sum(math.sin(3 * dim + block) for block, dim in enumerate(flat))


class Scripted(Script):
    """A script for uniform draws too; they are the floats."""

    def random(self) -> float:
        chosen = self.draws.pop(0)
        assert isinstance(chosen, float)
        return chosen


# --- operators -----------------------------------------------------------------------------------------------------

SPACE = SearchSpace(4, {"vpt": [1, 9], "lora": [2, 5]}, {"vpt": [1, 2, 4], "lora": [1, 2, 4]})
MOTHER = Architecture(vpt=[1, 1, 0, 0], lora=[2, 2, 2, 2])
FATHER = Architecture(vpt=[9, 9, 9, 9], lora=[5, 0, 0, 0])


@pytest.mark.parametrize(
    ("draws", "child"),
    [
        ((MOTHER, MOTHER), MOTHER),
        ((FATHER, FATHER), FATHER),
        ((MOTHER, FATHER), Architecture(vpt=[9, 9, 9, 9], lora=[2, 2, 2, 2])),
        ((FATHER, MOTHER), Architecture(vpt=[1, 1, 0, 0], lora=[5, 0, 0, 0])),
    ],
)
def test_crossover_takes_each_modules_whole_row_from_either_parent(draws, child):
    rng = Script(*draws)  # one coin for lora, one for vpt
    assert crossover(MOTHER, FATHER, SPACE, rng) == child
    assert rng.draws == []


YES, NO = 0.0, 0.99
RELEASED, DEFAULT = SearchSettings.named("released"), SearchSettings.named("default")


@pytest.mark.parametrize(
    ("variant", "draws", "child"),
    [
        # Neither row mutates.
        (RELEASED, (NO, NO), MOTHER),
        # lora mutates but keeps its depth, and no dim is drawn anew; vpt does not.
        (RELEASED, (YES, NO, NO, NO, NO, NO, NO), MOTHER),
        # lora does not mutate; vpt grows from 2 to 4: the two kept dims stay, the two new ones are drawn.
        (
            RELEASED,
            (NO, YES, YES, 4, NO, NO, 9, 1),
            Architecture(vpt=[1, 1, 9, 1], lora=[2, 2, 2, 2]),
        ),
        # lora shrinks from 4 to 1; vpt does not mutate.
        (RELEASED, (YES, YES, 1, NO, NO), Architecture(vpt=[1, 1, 0, 0], lora=[2, 0, 0, 0])),
        # Both keep their depth; one dim of lora and one of vpt are drawn anew within it.
        (
            DEFAULT,
            (YES, NO, NO, YES, 5, NO, NO, YES, NO, YES, 9, NO),
            Architecture(vpt=[9, 1, 0, 0], lora=[2, 5, 2, 2]),
        ),
        # lora shrinks to 2, where its second dim changes; vpt grows to 4.
        (
            DEFAULT,
            (YES, YES, 2, NO, YES, 5, YES, YES, 4, NO, NO, 1, 9),
            Architecture(vpt=[1, 1, 1, 9], lora=[2, 5, 0, 0]),
        ),
    ],
)
def test_mutation_draws_rows_depths_and_dims_in_the_stated_order(variant, draws, child):
    rng = Scripted(*draws)
    assert mutate(MOTHER, SPACE, variant, rng) == child
    assert rng.draws == []


def test_released_mutation_never_changes_a_dim_in_a_block_that_keeps_its_module():
    rng, space = random.Random(0), SearchSpace.vtab()
    changed = 0
    for _ in range(2_000):
        parent = space.sample(rng)
        child = mutate(parent, space, RELEASED, rng)
        changed += child != parent
        for name in parent:
            kept = min(parent.depth(name), child.depth(name))
            assert parent[name][:kept] == child[name][:kept]
    assert changed > 200


def test_default_mutation_changes_dims_in_blocks_that_keep_their_module():
    rng, space = random.Random(0), SearchSpace.vtab()
    parent, redrawn = space.largest(), Counter()
    for _ in range(2_000):
        child = mutate(parent, space, DEFAULT, rng)
        kept = [dim for name in parent for dim in child[name][: child.depth(name)]]
        redrawn["changed"] += sum(dim != 10 for dim in kept)
        redrawn["all"] += len(kept)
    # 0.2 are redrawn, of which two of three dims differ: 0.133; the standard error is below 0.002.
    assert redrawn["changed"] / redrawn["all"] == pytest.approx(0.2 * 2 / 3, abs=0.008)


def test_released_mutation_redraws_a_depth_in_8_of_100_rows():
    rng, space = random.Random(0), SearchSpace.vtab()
    parent = space.largest()
    shallower = sum(mutate(parent, space, RELEASED, rng).depth(name) < 12 for _ in range(4_000) for name in parent)
    # 0.2 x 0.4 are redrawn, of which three of four depths differ: 0.06; the standard error is 0.002.
    assert shallower / 12_000 == pytest.approx(0.06, abs=0.01)


probabilities = st.floats(0, 1)


@unhurried
@given(spaces(), st.integers(0, 10**6), probabilities, probabilities, probabilities)
def test_children_stay_in_the_space(space, seed, mutation_prob, depth_prob, dim_prob):
    rng = random.Random(seed)
    variant = SearchSettings(mutation_prob=mutation_prob, depth_prob=depth_prob, dim_prob=dim_prob)
    a, b = space.sample(rng), space.sample(rng)
    for child in (crossover(a, b, space, rng), mutate(a, space, variant, rng), shrink(a, space, rng)):
        assert child in space and list(child) == list(space.dims)


@unhurried
@given(spaces(), st.integers(0, 10**6))
def test_shrinking_never_adds_and_ends_at_the_smallest(space, seed):
    rng = random.Random(seed)
    a = space.sample(rng)
    for _ in range(500):
        smaller = shrink(a, space, rng)
        assert all(x <= y for name in a for x, y in zip(smaller[name], a[name], strict=True))
        a = smaller
    assert a == space.smallest()


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [3, 7, 12, 30])
def test_the_exact_optimum_of_a_small_space_is_found(seed, budget):
    space = SearchSpace(3, {"lora": [1, 5], "vpt": [2]}, {"lora": [0, 1, 2, 3], "vpt": [1, 3]})
    affordable = [a for a in space if total(a) <= budget]
    result = search(space, wiggle, total, budget, SMALL, seed=seed)
    assert result.best.score == max(map(wiggle, affordable))
    assert {c.architecture for c in result.candidates} == set(affordable)


@unhurried
@given(spaces(max_blocks=3), st.integers(0, 60), st.integers(0, 10**6))
def test_no_candidate_is_over_budget_outside_the_space_or_scored_twice(space, budget, seed):
    calls = Counter()

    def score(architecture):
        calls[architecture] += 1
        return wiggle(architecture)

    if total(space.smallest()) > budget:
        with pytest.raises(BudgetError):
            search(space, score, total, budget, SMALL, seed=seed)
        assert not calls
        return
    result = search(space, score, total, budget, SMALL, seed=seed)
    assert set(calls.values()) == {1} and set(calls) == {c.architecture for c in result.candidates}
    assert 1 <= len(result.candidates) <= SMALL.population_size * SMALL.generations
    for candidate in result.candidates:
        assert candidate.architecture in space and candidate.parameters == total(candidate.architecture) <= budget
    # A space that can be listed is exhausted, unless the generations are over before.
    if space.size() <= 2_000:
        assert len(result.candidates) == min(sum(total(a) <= budget for a in space), 40)


@pytest.mark.parametrize("name", ["default", "paper", "released"])
def test_a_search_of_the_papers_space_fills_every_generation_and_beats_its_first(name):
    variant = SearchSettings.named(name)
    result = search(SearchSpace.vtab(), wiggle, total, 180, variant, seed=1)
    sizes = Counter(candidate.generation for candidate in result.candidates)
    assert sizes == dict.fromkeys(range(variant.generations), variant.population_size)
    assert len({candidate.architecture for candidate in result.candidates}) == 750
    assert max(candidate.parameters for candidate in result.candidates) <= 180
    assert result.best.score > max(c.score for c in result.candidates if c.generation == 0)


def test_generations_hold_the_children_the_settings_ask_for_and_random_fill():
    result = search(SearchSpace.vtab(), wiggle, total, 300, SMALL, seed=0)
    for generation in range(4):
        origins = Counter(c.origin for c in result.candidates if c.generation == generation)
        expected = {"crossover": 4, "mutation": 4, "random": 2} if generation else {"random": 10}
        assert origins == expected


def test_parents_are_the_best_so_far_and_children_come_from_them():
    result = search(SearchSpace.vtab(), wiggle, total, 300, SMALL, seed=0)
    for index, child in enumerate(result.candidates):
        earlier = replace_candidates(result, [c for c in result.candidates if c.generation < child.generation])
        assert set(child.parents) <= set(earlier.ranking()[:3])
        assert len(set(child.parents)) == {"random": 0, "mutation": 1, "crossover": 2}[child.origin]
        parents = [result.candidates[parent].architecture for parent in child.parents]
        if child.origin == "crossover":
            rows = [{parent[name] for parent in parents} for name in child.architecture]
            assert all(child.architecture[name] in rows[i] for i, name in enumerate(child.architecture))
        assert all(parent < index for parent in child.parents)


def replace_candidates(result: SearchResult, candidates: list) -> SearchResult:
    return replace(result, candidates=candidates)


def test_the_last_generations_children_are_ranked():
    seen = []

    def rising(architecture):
        """Every later candidate is better, so that the best is the very last."""
        seen.append(architecture)
        return float(len(seen))

    result = search(SearchSpace.vtab(), rising, total, 300, SMALL, seed=0)
    assert result.best == result.candidates[-1] and result.best.generation == 3


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        search(SearchSpace.vtab(), wiggle, total, 180, SMALL, seed=seed).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_order_of_the_spaces_rows_does_not_change_the_history():
    orders = (["lora", "adapter", "vpt"], ["vpt", "lora", "adapter"])
    results = [search(SearchSpace.vtab(modules=names), wiggle, total, 150, SMALL) for names in orders]
    assert results[0].candidates == results[1].candidates


def test_the_global_generator_is_left_alone():
    random.seed(5)
    before = random.getstate()
    search(SearchSpace.vtab(), wiggle, total, 180, SMALL)
    assert random.getstate() == before


def test_map_is_called_once_a_generation_with_all_its_new_architectures():
    batches = []

    def in_threads(function, architectures):
        batches.append(list(architectures))
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(function, architectures))

    result = search(SearchSpace.vtab(), wiggle, total, 180, SMALL, map=in_threads)
    assert [len(batch) for batch in batches] == [10] * 4
    assert [a for batch in batches for a in batch] == [c.architecture for c in result.candidates]
    assert result.candidates == search(SearchSpace.vtab(), wiggle, total, 180, SMALL).candidates


def test_a_map_that_loses_a_score_is_an_error():
    with pytest.raises(ValueError, match="gave 9 scores for 10 architectures"):
        search(SearchSpace.vtab(), wiggle, total, 180, SMALL, map=lambda f, xs: [f(x) for x in xs[1:]])


def test_each_generation_is_reported_as_soon_as_it_is_scored(tmp_path):
    sizes = []

    def report(result):
        result.save(tmp_path / "search.json")
        sizes.append(len(SearchResult.load(tmp_path / "search.json").candidates))

    result = search(SearchSpace.vtab(), wiggle, total, 180, SMALL, on_generation=report)
    assert sizes == [10, 20, 30, 40]
    assert SearchResult.load(tmp_path / "search.json") == result


def test_of_equal_scores_the_cheapest_is_chosen():
    space = SearchSpace(3, {"lora": [1, 5]}, {"lora": [1, 2, 3]})
    assert search(space, lambda a: 0.5, total, 100).best.architecture == space.smallest()


# --- ask and tell ---------------------------------------------------------------------------------------------------


def ask_and_tell(algorithm, most=None):
    while proposals := algorithm.ask(most):
        assert most is None or len(proposals) <= most
        for proposal in proposals:
            algorithm.tell(proposal, wiggle(proposal.architecture))
    return algorithm.result


@pytest.mark.parametrize("most", [None, 1, 7])
def test_ask_and_tell_has_the_history_of_search_whatever_is_asked_for_at_once(most):
    space = SearchSpace.vtab()
    assert ask_and_tell(Evolution(space, total, 180, SMALL, seed=2), most) == search(
        space, wiggle, total, 180, SMALL, seed=2
    )
    assert ask_and_tell(RandomSearch(space, total, 180, 25, seed=2), most) == random_search(
        space, wiggle, total, 180, 25, seed=2
    )


def test_a_proposal_is_told_once_and_only_if_it_was_asked_for():
    evolution = Evolution(SearchSpace.vtab(), total, 180, SMALL)
    proposal, other = evolution.ask(2)
    with pytest.raises(ValueError, match="the score of Architecture.* is nan"):
        evolution.tell(proposal, math.nan)
    evolution.tell(proposal, 1.0)
    for unknown in (proposal, replace(other, origin="mutation")):
        with pytest.raises(ValueError, match="Architecture.* is not waiting for a score"):
            evolution.tell(unknown, 1.0)
    evolution.tell(other, None)
    assert [candidate.state for candidate in evolution.result.candidates] == ["scored", "failed"]


def test_a_new_generation_needs_the_scores_of_the_one_before():
    evolution = Evolution(SearchSpace.vtab(), total, 180, SMALL)
    first = evolution.ask(4) + evolution.ask()
    assert len(first) == 10
    for proposal in first[:-1]:
        evolution.tell(proposal, 0.5)
    with pytest.raises(ValueError, match="1 proposals of generation 0 have not been told"):
        evolution.ask()
    evolution.tell(first[-1], 0.5)
    assert {proposal.generation for proposal in evolution.ask()} == {1}


def test_the_search_ends_for_who_asks_while_others_still_score():
    control = RandomSearch(SearchSpace.vtab(), total, 180, 5)
    proposals = control.ask()
    assert control.ask() == []
    for proposal in proposals[::-1]:
        control.tell(proposal, 0.5)
    assert len(control.result.candidates) == 5


@pytest.mark.parametrize("most", [0, -1, 1.5])
def test_as_many_are_asked_for_as_there_can_be(most):
    with pytest.raises(ValueError, match="most is"):
        Evolution(SearchSpace.vtab(), total, 180, SMALL).ask(most)


class Climber:
    """Another algorithm: it walks to a better neighbour as long as there is one."""

    def __init__(self, space, budget, seed):
        self.result = SearchResult.new(SearchSettings(), space, budget, seed)
        self.rng = random.Random(seed)

    def ask(self, most=None):
        space, candidates = self.result.space, self.result.candidates
        if len(candidates) == 30:
            return []
        origin = mutate(self.result.best.architecture, space, DEFAULT, self.rng) if candidates else space.smallest()
        return [Proposal(origin, total(origin), len(candidates), "mutation" if candidates else "random")]

    def tell(self, proposal, score):
        self.result.add(proposal, score)


def test_another_algorithm_is_a_class_with_two_methods(tmp_path):
    def score_all(architectures, thresholds):
        return [
            Bounds(-99.0, wiggle(a)) if threshold is not None and not threshold.reached_by(wiggle(a)) else wiggle(a)
            for a, threshold in zip(architectures, thresholds, strict=True)
        ]

    result = search_with_bounds(Climber(SearchSpace.vtab(), 500, seed=1), score_all)
    assert len(result.candidates) == 30 and {c.state for c in result.candidates} == {"scored", "bounded"}
    assert result.best.score > result.candidates[0].score
    result.save(tmp_path / "search.json")
    assert SearchResult.load(tmp_path / "search.json") == result


# --- budgets and odd spaces ----------------------------------------------------------------------------------------


def test_a_budget_below_the_smallest_says_what_the_smallest_costs_before_any_scoring():
    costs = {"lora": 3_072, "adapter": 2_305, "vpt": 768}

    def count(architecture):
        return sum(costs[name] * sum(row) for name, row in architecture.items())

    def score(architecture):
        raise AssertionError("scored")

    with pytest.raises(BudgetError) as error:
        search(SearchSpace.vtab(), score, count, 5_000)
    assert str(error.value) == (
        "no architecture fits a budget of 5,000 parameters: the smallest in this search space has 18,435 "
        "(lora 9,216 + adapter 6,915 + vpt 2,304). Raise the budget, or allow smaller dims or depths."
    )
    assert issubclass(BudgetError, ValueError)


def test_a_budget_that_only_the_smallest_fits_gives_the_smallest():
    many_dims = SearchSpace(12, {"lora": range(1, 1_000)})  # too many for random steps to come down to the smallest
    for space in (SearchSpace.vtab(), SearchSpace.few_shot(24), SearchSpace(2, {"lora": [3, 4]}), many_dims):
        result = search(space, wiggle, total, total(space.smallest()))
        assert [c.architecture for c in result.candidates] == [space.smallest()]


def test_a_budget_that_random_draws_hardly_ever_meet_still_fills_the_population():
    space = SearchSpace.vtab()
    rng = random.Random(0)
    assert not any(total(space.sample(rng)) <= 20 for _ in range(5_000))
    result = search(space, wiggle, total, 20, SMALL)
    assert Counter(c.generation for c in result.candidates)[0] == SMALL.population_size
    assert all(c.parameters <= 20 for c in result.candidates)


def test_what_random_draws_miss_of_a_small_space_comes_in_an_order_of_the_seed(monkeypatch):
    monkeypatch.setattr(sys.modules["peft_noah.searching.evolution"], "TRIES", 0)
    space = SearchSpace(2, {"lora": [1, 5], "vpt": [1, 2]})
    histories = [random_search(space, wiggle, total, 100, 99, seed=seed).candidates for seed in (0, 1)]
    assert {c.architecture for c in histories[0]} == {c.architecture for c in histories[1]} == set(space)
    assert histories[0] != histories[1]


def test_a_space_of_one_architecture_ends_at_once():
    space = SearchSpace(2, {"lora": [3]}, {"lora": [2]})
    reports = []
    result = search(space, wiggle, total, 100, on_generation=reports.append)
    assert len(result.candidates) == 1 == len(reports) and result.best.architecture == Architecture(lora=[3, 3])


def test_the_budget_itself_may_be_spent():
    space = SearchSpace(2, {"lora": [3, 4]}, {"lora": [2]})
    assert search(space, total, total, 8).best.parameters == 8
    assert search(space, total, total, 7).best.parameters == 7


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, "high", [1, 2]])
def test_a_score_that_is_no_finite_number_is_an_error_that_names_the_architecture(score):
    space = SearchSpace(1, {"lora": [3]})
    with pytest.raises(ValueError, match=r"the score of Architecture\(lora=\[3\]\) is "):
        search(space, lambda a: score, total, 100)


def test_a_candidate_that_could_not_be_scored_stays_in_the_history_and_has_no_children():
    def score(architecture):
        return None if architecture["lora"][0] == 1 else wiggle(architecture)

    result = search(SearchSpace.vtab(), score, total, 250, SMALL)
    unscored = [i for i, c in enumerate(result.candidates) if c.score is None]
    assert 3 < len(unscored) < 40 and len(result.candidates) == 40
    assert not {parent for c in result.candidates for parent in c.parents} & set(unscored)
    assert result.best.score is not None


def test_a_search_in_which_nothing_could_be_scored_stays_random():
    result = search(SearchSpace.vtab(), lambda a: None, total, 250, SMALL)
    assert {c.origin for c in result.candidates} == {"random"} and len(result.candidates) == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 5e5}, "budget is 500000.0"),
        ({"budget": -1}, "budget is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "0"}, "seed is '0'"),
        ({"provenance": {"when": {1, 2}}}, "provenance must be plain data"),
        ({"provenance": {"x": math.nan}}, "provenance must be plain data"),
        ({"count": lambda a: 1.5}, "the count of Architecture.* is 1.5"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_before_any_scoring(change, message):
    def score(architecture):
        raise AssertionError("scored")

    arguments = {"space": SearchSpace.vtab(), "score": score, "count": total, "budget": 300} | change
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_the_result_says_what_made_it():
    given = {"dataset": "fashion_mnist", "dims": (1, 2), "versions": {"torch": "2.13.0"}}
    result = search(SearchSpace.vtab(), wiggle, total, 180, SMALL, seed=4, provenance=given)
    assert result.provenance == {"dataset": "fashion_mnist", "dims": [1, 2]}
    assert set(result.versions) == {"python", "peft_noah", "torch"} and result.versions["torch"] == "2.13.0"
    assert (result.seed, result.budget, result.settings, result.space) == (4, 180, SMALL, SearchSpace.vtab())
    assert "versions" in given


# --- the control ---------------------------------------------------------------------------------------------------


def test_random_search_scores_just_as_many_random_architectures_as_asked():
    result = random_search(SearchSpace.vtab(), wiggle, total, 180, 70, seed=3)
    assert len({c.architecture for c in result.candidates}) == len(result.candidates) == 70
    assert {(c.origin, c.generation, c.parents) for c in result.candidates} == {("random", 0, ())}
    assert max(c.parameters for c in result.candidates) <= 180
    assert result.candidates == random_search(SearchSpace.vtab(), wiggle, total, 180, 70, seed=3).candidates


def test_random_search_draws_as_the_paper_samples_where_all_fits():
    rng, space = random.Random(3), SearchSpace.vtab()
    result = random_search(space, wiggle, total, 10**6, 20, seed=3)
    assert [c.architecture for c in result.candidates] == [space.sample(rng) for _ in range(20)]


@pytest.mark.parametrize("evaluations", [0, 2.5, "3"])
def test_random_search_needs_a_positive_number_of_evaluations(evaluations):
    with pytest.raises(ValueError, match="evaluations is"):
        random_search(SearchSpace.vtab(), wiggle, total, 180, evaluations)


def test_random_search_of_a_small_space_scores_all_of_it():
    space = SearchSpace(2, {"lora": [1, 5], "vpt": [1]})
    assert len(random_search(space, wiggle, total, 100, 1_000).candidates) == space.size()


def test_the_docstrings_examples_run():
    result = doctest.testmod(sys.modules["peft_noah.searching.evolution"])
    assert result.attempted > 0 and result.failed == 0
