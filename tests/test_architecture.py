"""Architectures as plain data."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_noah import architecture as module
from peft_noah.architecture import MAX_BLOCKS, MAX_DIM, Architecture
from peft_noah.search_space import SearchSpace

unhurried = settings(deadline=None)  # a busy machine is no failure
NAMES = ("lora", "adapter", "vpt", "ssf")


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    blocks = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 100), min_size=blocks, max_size=blocks)
    return Architecture(draw(st.dictionaries(st.sampled_from(NAMES), row, min_size=1)))


def test_an_architecture_holds_one_row_of_dims_per_module():
    architecture = Architecture({"lora": [1, 0, 5]}, vpt=(10, 10, 0))
    assert dict(architecture) == {"lora": (1, 0, 5), "vpt": (10, 10, 0)}
    assert list(architecture) == ["lora", "vpt"]
    assert architecture.num_blocks == 3


def test_depth_is_the_last_block_that_carries_the_module():
    architecture = Architecture(a=[1, 0, 5, 0], b=[0, 0, 0, 0], c=[0, 0, 0, 7])
    assert [architecture.depth(name) for name in "abc"] == [3, 0, 4]


def test_depth_of_an_unknown_row_names_the_rows_there_are():
    with pytest.raises(ValueError, match=r"no row 'vpt' in this architecture \(rows: lora, adapter\)"):
        Architecture(lora=[1], adapter=[1]).depth("vpt")


def test_equality_and_hash_ignore_the_order_of_rows_but_nothing_else():
    a, b = Architecture(lora=[1, 2], vpt=[3, 0]), Architecture(vpt=[3, 0], lora=[1, 2])
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert a != Architecture(lora=[3, 0], vpt=[1, 2])
    assert a != Architecture(lora=[1, 2])
    assert list(b.to_dict()) == ["vpt", "lora"]


def test_an_architecture_cannot_be_changed():
    architecture = Architecture(lora=[1, 2])
    with pytest.raises(AttributeError):
        architecture._rows = {}
    with pytest.raises(TypeError):
        architecture["lora"] = (3, 4)
    architecture.to_dict()["lora"][0] = 9
    assert architecture["lora"] == (1, 2)


@unhurried
@given(architectures())
def test_an_architecture_survives_every_round_trip(architecture):
    copies = [
        Architecture.from_dict(architecture.to_dict()),
        Architecture.from_json(architecture.to_json()),
        pickle.loads(pickle.dumps(architecture)),
        copy.deepcopy(architecture),
        eval(repr(architecture)),
    ]
    for other in copies:
        assert other == architecture and list(other) == list(architecture) and hash(other) == hash(architecture)


def test_a_saved_architecture_loads_and_leaves_no_other_file(tmp_path):
    architecture = Architecture(lora=[1, 2], vpt=[3, 0])
    architecture.save(tmp_path / "best.json")
    assert Architecture.load(str(tmp_path / "best.json")) == architecture
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"lora": [1, 2], "vpt": [3, 0]}


def test_integers_of_numpy_are_dims_too():
    numpy = pytest.importorskip("numpy")
    row = Architecture(lora=list(numpy.array([4, 0])))["lora"]
    assert row == (4, 0) and [type(dim) for dim in row] == [int, int]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"lora": [1] * 10, "vpt": [1] * 12}, "row 'vpt' has 12 dims but row 'lora' has 10. Give one dim per block"),
        ({"lora": [1, -1]}, "row 'lora' in block 1 is -1; give a whole number from 0 to 65,536"),
        ({"lora": [True]}, "is True; give a whole number"),
        ({"lora": [1.0]}, "is 1.0; give a whole number"),
        ({"lora": ["1"]}, "is '1'; give a whole number"),
        ({"lora": [None]}, "is None; give a whole number"),
        ({"lora": [10**9]}, "is 1000000000; give a whole number from 0 to 65,536"),
        ({"lora": range(10**12)}, "has 1,000,000,000,000 entries; give 1 to 4,096"),
        ({"lora": []}, "has 0 entries"),
        ({"lora": "123"}, "is '123'; give a list"),
        ({"lora": 8}, "is 8; give a list"),
        ({"lora": {"0": 1}}, "give a list"),
        ({}, "1 to 64 rows"),
        ({f"m{i}": [1] for i in range(65)}, "this one has 65"),
        ({"../x": [1]}, "row name '../x'"),
        ({"x" * 65: [1]}, "at most 64 letters"),
        ({3: [1]}, "row name 3"),
        ([1, 2], r"not \[1, 2\]"),
    ],
)
def test_rows_that_cannot_be_are_refused_with_the_reason(rows, message):
    with pytest.raises(ValueError, match=message) as error:
        Architecture(rows)
    assert len(str(error.value)) < 300


def test_the_bounds_themselves_are_allowed():
    assert Architecture(lora=[MAX_DIM] * MAX_BLOCKS).num_blocks == MAX_BLOCKS


def test_uniform_has_the_same_dim_everywhere():
    assert Architecture.uniform(3, lora=8, vpt=0) == Architecture(lora=[8, 8, 8], vpt=[0, 0, 0])


@pytest.mark.parametrize("blocks", [0, -1, 10**12, 2.0, True])
def test_uniform_refuses_a_number_of_blocks_before_it_allocates(blocks):
    with pytest.raises(ValueError, match="num_blocks is"):
        Architecture.uniform(blocks, lora=8)


GOOD = Architecture(lora=[1, 5, 10], vpt=[1, 1, 0]).to_json()
BAD_TEXTS = [GOOD[:cut] for cut in range(len(GOOD) - 2)] + [
    "[1, 2]",
    "7",
    "null",
    '{"lora": [NaN]}',
    '{"lora": [1e3]}',
    '{"lora": {"rank": 8}}',
    '{"peft_type": "LORA", "r": 8}',
    "[" * 100_000,
    '{"lora": [' + "9" * 5_000 + "]}",
    '{"\\ud800": [1]}',
]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: repr(text[-12:]))
def test_a_file_that_is_cut_short_or_holds_something_else_is_one_error_that_names_it(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="broken.json") as error:
        Architecture.load(path)
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError):
        Architecture.from_json(text)


def test_a_file_that_is_missing_or_is_no_text_is_one_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*nowhere.json"):
        Architecture.load(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="cannot read"):
        Architecture.load(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x80\x81")
    with pytest.raises(ValueError, match="bytes.json"):
        Architecture.load(tmp_path / "bytes.json")


@unhurried
@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 20))
def test_a_damaged_text_is_an_architecture_or_a_value_error(noise, start, length):
    text = GOOD.encode()[:start] + noise + GOOD.encode()[start + length :]
    try:
        assert isinstance(Architecture.from_json(text), Architecture)
    except ValueError:
        pass


# --- the published ones --------------------------------------------------------------------------------------------

SUSPECT = {"vtab/dtd", "vtab/oxford_flowers102"}


def load_published(name: str) -> Architecture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Architecture.published(name)


def test_19_architectures_of_vtab_and_26_of_few_shot_are_published():
    groups = Counter(name.split("/")[0] for name in Architecture.published_names())
    assert groups == {"vtab": 19, "few_shot": 26}


@pytest.mark.parametrize("name", Architecture.published_names())
def test_a_published_architecture_lies_in_the_papers_space(name):
    space = SearchSpace.vtab() if name.startswith("vtab/") else SearchSpace.few_shot()
    architecture = load_published(name)
    assert architecture in space
    if name.startswith("vtab/"):
        assert [architecture.depth(row) for row in architecture] == [12, 12, 12]


def test_a_published_architecture_is_the_authors():
    assert Architecture.published("vtab/cifar100") == Architecture(
        vpt=[10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10],
        lora=[10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1],
        adapter=[5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1],
    )
    assert Architecture.published("few_shot/imagenet_16")["adapter"] == (10, 10, 50) + (0,) * 9


@pytest.mark.parametrize("name", Architecture.published_names())
def test_only_the_two_suspect_ones_warn_and_they_repeat_a_row(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        architecture = Architecture.published(name)
    assert [entry.category for entry in caught] == [UserWarning] * (name in SUSPECT)
    if name.startswith("vtab/"):
        assert (architecture["vpt"] == architecture["lora"]) == (name in SUSPECT)


def test_an_unknown_published_name_gives_the_nearest():
    with pytest.raises(ValueError, match="'vtab/cifar'.*Did you mean 'vtab/cifar100'"):
        Architecture.published("vtab/cifar")
    with pytest.raises(ValueError, match="'zzz'. Architecture.published_names"):
        Architecture.published("zzz")


def test_the_docstrings_examples_run():
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
