"""Whatever stands in a file: it is accepted, or refused by a clear ValueError. `fuzz_files.py` does the same at length."""

import json
from functools import cache

import pytest
from fuzz_files import markdown, shares
from hostile_files import KINDS, Files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ALLOWED = ("accepted", "refused")
JSON_KINDS = [name for name, kind in KINDS.items() if kind.file.endswith(".json") and name != "image processor"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return cache(lambda name: Files(name, tmp_path_factory.mktemp("files")))


@pytest.mark.parametrize("name", KINDS)
def test_good_files_are_accepted(files, name):
    assert {files(name).load(data) for data in files(name).originals} == {"accepted"}


@pytest.mark.parametrize("name", KINDS)
def test_a_mutated_file_is_accepted_or_refused_by_a_clear_error(files, name):
    count = 12 if KINDS[name].weight < 5 else 40
    outcomes = {number: files(name).load(files(name).mutated(number)) for number in range(count)}
    assert {number: outcome for number, outcome in outcomes.items() if outcome not in ALLOWED} == {}
    assert "refused" in outcomes.values()


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
_KEYS = st.sampled_from(["lora", "dims", "num_blocks", "architecture", "peft_type", "results", "self"]) | st.text(
    max_size=5
)
_ANY = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=12
)


@pytest.mark.parametrize("name", JSON_KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_refused_by_a_clear_error(files, name, data):
    tree = json.loads(files(name).originals[0])
    value = data.draw(_ANY)
    if isinstance(tree, dict) and data.draw(st.integers(0, 9)):
        tree[data.draw(st.sampled_from(sorted(tree)))] = value
    else:
        tree = value
    assert files(name).load(json.dumps(tree).encode()) in ALLOWED


def test_the_shares_of_a_fuzz_run_add_up_to_what_was_asked():
    counts = shares(20_000, {name: kind.weight for name, kind in KINDS.items()})
    assert counts.keys() == KINDS.keys() and 20_000 <= sum(counts.values()) <= 20_000 + len(KINDS)


def test_the_table_counts_faults_and_names_them():
    text = markdown({"image": {0: "accepted", 1: "refused", 2: "hang", 3: "crash: X in y:1: z"}}, {"command": "fuzz"})
    assert "| image | 4 | 1 | 1 | 1 | 1 | 0 |" in text and "- image 3: crash: X in y:1: z" in text
