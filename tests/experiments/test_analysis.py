"""Rank correlation and what the best candidates share, against values computed by hand."""

from __future__ import annotations

import math
import random

import pytest

from peft_noah.architecture import Architecture
from peft_noah.experiments.analysis import Shares, rank_correlation, shared_by_best
from peft_noah.search_space import SearchSpace
from peft_noah.searching.result import Candidate, SearchResult, SearchSettings

SPACE = SearchSpace(3, {"lora": [1, 5], "vpt": [10]}, {"lora": [1, 3], "vpt": [0, 3]})


def make_search(*candidates: tuple[float | None, list[int], list[int]], space: SearchSpace = SPACE) -> SearchResult:
    """A search from score, LoRA row and VPT row of each candidate."""
    entries = [Candidate(Architecture(lora=lora, vpt=vpt), 10, score, 0, "random") for score, lora, vpt in candidates]
    return SearchResult(SearchSettings(), space, budget=100, seed=0, candidates=entries)


SEARCH = make_search(
    (0.9, [5, 5, 5], [0, 0, 0]),
    (0.1, [1, 0, 0], [10, 10, 10]),
    (0.8, [5, 1, 1], [10, 10, 10]),
    (0.2, [1, 5, 5], [10, 10, 10]),
    (None, [1, 0, 0], [0, 0, 0]),
)


# --- rank correlation --------------------------------------------------------------------------------------------


def test_tau_and_its_jackknife_error_are_those_computed_by_hand():
    found = rank_correlation([1, 2, 3, 4], [1, 3, 2, 4])
    # 5 pairs alike, 1 opposite. Without each in turn: 1/3, 1, 1, 1/3; mean 2/3, squares 4/9, times 3/4.
    assert found.tau == pytest.approx(4 / 6) and found.error == pytest.approx(math.sqrt(1 / 3))
    # 8 of the 24 orders of four are as far from 0.
    assert found.p_value == pytest.approx(1 / 3) and found.n == 4
    assert str(found) == "Kendall's tau-b 0.67 ± 0.58 over 4 architectures (p = 0.33)"


def test_ties_are_corrected_for():
    # 4 pairs alike, one tied on each side: 4 / sqrt(5 * 5).
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 3]).tau == pytest.approx(0.8)


def test_the_sign_follows_the_order_and_scale_does_not_matter():
    scores = [0.71, 0.74, 0.72, 0.9, 0.3]
    assert rank_correlation(scores, [100 * score for score in scores]).tau == pytest.approx(1)
    assert rank_correlation(scores, [-score for score in scores]).tau == pytest.approx(-1)


def test_the_error_is_missing_where_one_architecture_less_leaves_nothing_to_rank():
    found = rank_correlation([1, 1, 2], [1, 2, 3])
    assert found.error is None and "±" not in str(found)


def test_the_jackknife_error_is_near_the_spread_over_samples():
    rng = random.Random(0)
    taus, errors = [], []
    for _ in range(60):
        scores = [rng.random() for _ in range(15)]
        found = rank_correlation([round(s + rng.gauss(0, 0.2), 1) for s in scores], scores)
        taus.append(found.tau)
        errors.append(found.error)
    mean = sum(taus) / len(taus)
    spread = math.sqrt(sum((tau - mean) ** 2 for tau in taus) / (len(taus) - 1))
    # 60 samples know their own spread to within 9 %; the jackknife is somewhat large at n = 15.
    assert 0.8 < sum(errors) / len(errors) / spread < 1.5


@pytest.mark.parametrize(
    ("inherited", "retrained", "message"),
    [
        ([1, 2], [1, 2], "3 architectures or more"),
        ([1, 2, 3], [1, 2], "3 inherited and 2 retrained"),
        ([1, 2, math.nan], [1, 2, 3], "not a finite number"),
        ([1, 2, 3], [5, 5, 5], "all 3 retrained scores are 5"),
        ([5, 5, 5], [1, 2, 3], "all 3 inherited scores are 5"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(inherited, retrained, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(inherited, retrained)


# --- what the best share -----------------------------------------------------------------------------------------


def test_shares_among_the_best_and_the_others_are_counted():
    found = shared_by_best(SEARCH, k=2)
    assert (found.best.n, found.others.n, found.searches) == (2, 3, 1)
    assert found.best.depths == {"lora": {1: 0, 3: 1}, "vpt": {0: 0.5, 3: 0.5}}
    assert found.others.depths["lora"] == {1: pytest.approx(2 / 3), 3: pytest.approx(1 / 3)}
    assert found.best.dims["lora"] == ({0: 0, 1: 0, 5: 1}, {0: 0, 1: 0.5, 5: 0.5}, {0: 0, 1: 0.5, 5: 0.5})
    assert found.others.dims["vpt"][0] == {0: pytest.approx(1 / 3), 10: pytest.approx(2 / 3)}


BY_BLOCK = SearchSpace(3, {"lora": [0, 1, 5], "ssf": [[0], [1], [0, 1]]})


@pytest.mark.parametrize("space", [SPACE, BY_BLOCK])
def test_the_uniform_draw_is_what_sampling_the_space_gives(space):
    exact = Shares.uniform(space)
    rng = random.Random(0)
    drawn = Shares.of([space.sample(rng) for _ in range(2_000)], space)
    for name in space.dims:
        # The standard error of a share over 2,000 draws is at most 0.011.
        assert drawn.depths[name] == pytest.approx(exact.depths[name], abs=0.045)
        for block, shares in enumerate(exact.dims[name]):
            assert sum(shares.values()) == pytest.approx(1)
            found = {dim: share for dim, share in drawn.dims[name][block].items() if dim in shares or share}
            assert found == pytest.approx(shares, abs=0.045)


def test_several_searches_of_one_space_are_taken_together():
    found = shared_by_best([SEARCH, make_search((0.5, [1, 0, 0], [0, 0, 0]), (0.4, [1, 1, 1], [0, 0, 0]))], k=1)
    assert (found.best.n, found.others.n, found.searches) == (2, 5, 2)
    assert found.best.depths["lora"] == {1: 0.5, 3: 0.5}


def test_the_tables_hold_the_shares_in_percent():
    found = shared_by_best(SEARCH, k=2)
    depths = [tuple(map(str, row)) for row in found.depth_table().rows]
    assert depths == [
        ("LoRA (rank)", "1", "0", "67", "50"),
        ("LoRA (rank)", "3", "100", "33", "50"),
        ("VPT (tokens)", "0", "50", "33", "50"),
        ("VPT (tokens)", "3", "50", "67", "50"),
    ]
    dims = found.dim_table()
    assert dims.header[2:4] == ("absent: best", "absent: others") and dims.header[-2:] == (
        "dim 10: best",
        "dim 10: others",
    )
    assert [str(entry) for entry in dims.rows[0]] == [
        "LoRA (rank)",
        "1",
        "0",
        "0",
        "0",
        "100",
        "100",
        "0",
        "None",
        "None",
    ]
    assert "2 best and 3 other candidates of 1 search." in dims.notes[0]


@pytest.mark.parametrize(
    ("searches", "k", "message"),
    [
        ([], 1, "no searches"),
        (SEARCH, 0, "the 0 best of 4 scored"),
        (SEARCH, 4, "the 4 best of 4 scored"),
        ([SEARCH, make_search(space=SearchSpace(3, {"lora": [1], "vpt": [1]}))], 1, "different spaces"),
    ],
)
def test_searches_that_have_no_best_and_others_are_refused(searches, k, message):
    with pytest.raises(ValueError, match=message):
        shared_by_best(searches, k)
