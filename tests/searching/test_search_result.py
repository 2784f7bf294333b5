"""What a search is told and leaves behind."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_architecture import unhurried

from peft_noah.architecture import Architecture
from peft_noah.search_space import SearchSpace
from peft_noah.searching.result import Bounds, Candidate, Proposal, SearchResult, SearchSettings

SPACE = SearchSpace(2, {"lora": [1, 5]}, {"lora": [1, 2]})


def make_result(*entries: tuple[list[int], float | None, int]) -> SearchResult:
    """A result whose candidates have these dims, scores and parameters."""
    candidates = [
        Candidate(Architecture(lora=row), parameters, score, generation=i, origin="random")
        for i, (row, score, parameters) in enumerate(entries)
    ]
    return SearchResult(SearchSettings(), SPACE, budget=100, seed=3, candidates=candidates)


# --- settings ------------------------------------------------------------------------------------------------------


def test_the_released_variant_is_as_in_the_authors_code():
    assert asdict(SearchSettings.named("released")) == {
        "population_size": 50,
        "generations": 15,
        "num_parents": 10,
        "num_crossover": 25,
        "num_mutation": 25,
        "mutation_prob": 0.2,
        "depth_prob": 0.4,
        "dim_prob": 0.0,
    }


def test_the_paper_variant_has_5_generations_of_50_of_each_kind_and_the_probability_02():
    paper = SearchSettings.named("paper")
    num_random = paper.population_size - paper.num_crossover - paper.num_mutation
    assert (paper.generations, paper.num_crossover, paper.num_mutation, num_random) == (5, 50, 50, 50)
    assert (paper.mutation_prob, paper.depth_prob, paper.dim_prob) == (1.0, 0.2, 0.2)


def test_the_default_variant_redraws_dims_and_costs_the_same_as_the_others():
    variants = {name: SearchSettings.named(name) for name in ("default", "paper", "released")}
    assert variants["default"] == SearchSettings() and variants["default"].dim_prob > 0
    assert {variant.population_size * variant.generations for variant in variants.values()} == {750}


@pytest.mark.parametrize("name", ["default", "paper", "released"])
def test_settings_come_back(name):
    settings = SearchSettings.named(name)
    assert SearchSettings.from_dict(settings.to_dict()) == settings


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'fast' \(known: default, paper, released\)"):
        SearchSettings.named("fast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"population_size": 0}, "population_size is 0"),
        ({"generations": 0}, "generations is 0"),
        ({"generations": 1.0}, "generations is 1.0"),
        ({"num_parents": 0}, "num_parents is 0"),
        ({"num_crossover": -1}, "num_crossover is -1"),
        ({"num_mutation": 51}, "num_mutation is 51; give a whole number from 0 to 50"),
        ({"num_mutation": 26}, "num_crossover 25 [+] num_mutation 26 is more than population_size 50"),
        ({"mutation_prob": 1.1}, "mutation_prob is 1.1; give a finite number of at least 0 and at most 1"),
        ({"depth_prob": -0.1}, "depth_prob is -0.1"),
        ({"dim_prob": math.nan}, "dim_prob is nan"),
        ({"dim_prob": "0.2"}, "dim_prob is '0.2'"),
        ({"dim_prob": True}, "dim_prob is True"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**change)


# --- ranking -------------------------------------------------------------------------------------------------------


def test_the_best_has_the_highest_score():
    assert make_result(([1, 0], 0.1, 9), ([5, 0], 0.9, 10), ([1, 1], 0.5, 1)).best.architecture["lora"] == (5, 0)


def test_of_equal_scores_the_one_with_fewer_parameters_is_better_and_then_the_earlier():
    result = make_result(([1, 0], 0.5, 9), ([5, 0], 0.5, 4), ([1, 1], 0.5, 4), ([1, 5], 0.6, 50))
    assert result.ranking() == [3, 1, 2, 0]
    assert result.top(2) == [result.candidates[3], result.candidates[1]]
    assert len(result.top(99)) == 4


def test_a_candidate_without_a_score_is_never_chosen():
    assert make_result(([1, 0], None, 1), ([5, 0], -3.0, 2)).ranking() == [1]
    with pytest.raises(ValueError, match="none of the 1 candidates"):
        _ = make_result(([1, 0], None, 1)).best


# --- the file ------------------------------------------------------------------------------------------------------


def full_result() -> SearchResult:
    result = make_result(([1, 0], 0.1, 9), ([5, 0], 1 / 3, 10), ([1, 1], None, 1))
    result.candidates[2] = replace(result.candidates[2], origin="crossover", parents=(0, 1))
    result.versions = {"python": "3.12.0"}
    result.provenance = {"dataset": "fashion_mnist", "images": 200}
    return result


def test_a_saved_result_loads_as_it_was(tmp_path):
    full_result().save(tmp_path / "search.json")
    assert SearchResult.load(tmp_path / "search.json") == full_result()
    assert [file.name for file in tmp_path.iterdir()] == ["search.json"]


def test_the_file_holds_every_candidate_with_all_that_is_known_of_it(tmp_path):
    full_result().save(tmp_path / "search.json")
    data = json.loads((tmp_path / "search.json").read_text())
    assert data["candidates"][2] == {
        "architecture": {"lora": [1, 1]},
        "parameters": 1,
        "score": None,
        "generation": 2,
        "origin": "crossover",
        "parents": [0, 1],
    }
    assert (data["seed"], data["budget"], data["versions"]) == (3, 100, {"python": "3.12.0"})
    assert data["settings"] == SearchSettings().to_dict() and data["space"] == SPACE.to_dict()
    assert data["provenance"] == {"dataset": "fashion_mnist", "images": 200}


def test_a_file_cut_short_anywhere_is_one_error_that_names_it(tmp_path):
    path = tmp_path / "search.json"
    full_result().save(path)
    text = path.read_text()
    for cut in range(0, len(text) - 2, 7):
        path.write_text(text[:cut])
        with pytest.raises(ValueError, match=r"search.json is not valid JSON .* cut short"):
            SearchResult.load(path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["candidates", 0, "architecture", "lora"], [10**9, 0], "is 1000000000"),
        (["candidates", 0, "architecture", "lora"], [2, 0], "candidate 0 lies outside the search space"),
        (["candidates", 0, "architecture", "lora"], [1, 0, 0], "candidate 0 lies outside the search space"),
        (["candidates", 0, "parameters"], 101, "candidate 0 lies .* above the budget"),
        (["candidates", 0, "parameters"], -1, "parameters of candidate 0 is -1"),
        (["candidates", 0, "score"], "high", "the score of Architecture.lora=.1, 0.. is 'high'"),
        (["candidates", 0, "score"], "0.5", "the score of .* is '0.5'"),
        (["candidates", 0, "score"], 10**400, "the score of"),
        (["candidates", 0, "generation"], None, "generation of candidate 0 is None"),
        (["candidates", 0, "origin"], "magic", "candidate 0 has origin 'magic'"),
        (["candidates", 0, "origin"], ["random"], "candidate 0 has origin"),
        (["candidates", 1, "parents"], [1], "a parent of candidate 1 is 1; give a whole number from 0 to 0"),
        (["candidates", 0, "parents"], [0], "a parent of candidate 0 is 0"),
        (["candidates", 2, "parents"], [0, 0, 0], "candidate 2 has parents"),
        (["candidates", 2, "parents"], "01", "candidate 2 has parents"),
        (["candidates", 0], {"architecture": {"lora": [1, 0]}}, "candidate 0 has .* misses parameters"),
        (["candidates"], {}, "candidates is {}; give a list"),
        (["settings"], {"population_size": 50}, "the settings"),
        (["settings", "generations"], "15", "generations is '15'"),
        (["settings", "suffix_mutation"], True, "the variant 'suffix', which peft-noah had in version 0.1 only"),
        (["space", "num_blocks"], 10**9, "num_blocks is"),
        (["space"], None, "a search space"),
        (["budget"], -1, "budget is -1"),
        (["seed"], 0.5, "seed is 0.5"),
        (["versions"], [], "versions is"),
        (["extra"], 1, r"has unknown \['extra'\]"),
        ([], [1, 2], "a search result is a mapping"),
    ],
)
def test_a_file_with_an_entry_that_cannot_be_is_one_error_that_names_both(tmp_path, where, value, message):
    data = full_result().to_dict()
    if where:
        target = data
        for key in where[:-1]:
            target = target[key]
        target[where[-1]] = value
    path = tmp_path / "search.json"
    path.write_text(json.dumps(data if where else value))
    with pytest.raises(ValueError, match=f"search.json does not hold a search result: .*{message}") as error:
        SearchResult.load(path)
    assert len(str(error.value)) < 500


@unhurried
@given(st.data())
def test_a_damaged_file_is_a_result_or_a_value_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "search.json"
    full_result().save(path)
    text = path.read_bytes()
    start = data.draw(st.integers(0, len(text)))
    noise = data.draw(st.sampled_from([b"", b"0", b"9" * 30, b"[", b"}", b"null", b'"', b"-", b"1e999", b"\xff"]))
    path.write_bytes(text[:start] + noise + text[start + data.draw(st.integers(0, 3)) :])
    try:
        assert isinstance(SearchResult.load(path), SearchResult)
    except ValueError as error:
        assert "search.json" in str(error)


# --- candidates whose scoring was stopped --------------------------------------------------------------------------


def with_bounds() -> SearchResult:
    result = make_result(([1, 0], 0.5, 1), ([5, 0], None, 2), ([1, 1], None, 3))
    result.candidates[1] = replace(result.candidates[1], bounds=Bounds(0.25, 0.45))
    return result


def test_bounds_are_kept_where_there_are_any(tmp_path):
    with_bounds().save(tmp_path / "search.json")
    assert SearchResult.load(tmp_path / "search.json") == with_bounds()
    entries = json.loads((tmp_path / "search.json").read_text())["candidates"]
    assert entries[1]["bounds"] == [0.25, 0.45] and entries[1]["score"] is None
    assert "bounds" not in entries[0] and "bounds" not in entries[2]


def test_a_candidate_with_bounds_is_never_chosen():
    assert with_bounds().ranking() == [0]


def test_a_candidates_state_is_one_word():
    assert [candidate.state for candidate in with_bounds().candidates] == ["scored", "bounded", "failed"]


@pytest.mark.parametrize(
    ("score", "state"), [(0.5, "scored"), (0, "scored"), (Bounds(0, 1), "bounded"), (None, "failed")]
)
def test_what_is_told_of_a_proposal_is_added_at_the_end(score, state):
    result, proposal = make_result(([1, 0], 0.5, 1)), Proposal(Architecture(lora=[1, 1]), 2, 1, "mutation", (0,))
    result.add(proposal, score)
    added = result.candidates[-1]
    assert (added.state, added.parameters, added.generation, added.parents) == (state, 2, 1, (0,))
    for wrong in (math.nan, "0.5", Bounds(0.5, 0.4), Bounds(0.0, math.inf)):
        with pytest.raises(ValueError):
            result.add(proposal, wrong)
    assert len(result.candidates) == 2


@pytest.mark.parametrize(
    ("index", "bounds", "message"),
    [
        (0, [0.1, 0.2], r"candidate 0 has score 0.5 and bounds \[0.1, 0.2\]; give a score, or"),
        (1, [0.1], r"candidate 1 has score None and bounds \[0.1\]"),
        (1, None, "candidate 1 has score None and bounds None"),
        (1, [0.3, 0.2], r"the bounds of candidate 1 are \[0.3, 0.2\]; give the lower one first"),
        (1, [None, 0.2], "the bounds of candidate 1 are"),
        (1, [0.1, 10**400], "the score of candidate 1 is 1000"),
    ],
)
def test_bounds_that_cannot_be_are_refused(tmp_path, index, bounds, message):
    data = with_bounds().to_dict()
    data["candidates"][index]["bounds"] = bounds
    (tmp_path / "search.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        SearchResult.load(tmp_path / "search.json")
