"""Search spaces as plain data."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import random
import re
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_noah import search_space as module
from peft_noah.architecture import MAX_BLOCKS, Architecture
from peft_noah.search_space import SearchSpace, default_depths

unhurried = settings(deadline=None)  # a busy machine is no failure
NAMES = ("lora", "adapter", "vpt", "ssf")


@st.composite
def spaces(draw: st.DrawFn, max_blocks: int = 6) -> SearchSpace:
    blocks = draw(st.integers(1, max_blocks))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    dims = {name: draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)) for name in names}
    depths = {name: draw(st.lists(st.integers(0, blocks), min_size=1, max_size=3)) for name in names}
    return SearchSpace(blocks, dims, depths)


class Script(random.Random):
    """A generator whose draws are written down beforehand."""

    def __init__(self, *draws: object) -> None:
        super().__init__(0)
        self.draws = list(draws)

    def choice(self, options):
        chosen = self.draws.pop(0)
        assert chosen in options
        return chosen


def test_the_named_spaces_are_the_papers():
    vtab, few_shot = SearchSpace.vtab(), SearchSpace.few_shot()
    assert vtab.num_blocks == few_shot.num_blocks == 12
    assert dict(vtab.dims) == dict.fromkeys(("lora", "adapter", "vpt"), (1, 5, 10))
    assert dict(few_shot.dims) == dict.fromkeys(("lora", "adapter", "vpt"), (5, 10, 50, 100))
    assert dict(vtab.depths) == dict(few_shot.depths) == dict.fromkeys(("lora", "adapter", "vpt"), (3, 6, 9, 12))


def test_the_wide_space_is_lora_by_site_and_adapter_plus_in_all_blocks_or_none():
    space = SearchSpace.wide()
    linears = ("lora_query", "lora_key", "lora_value", "lora_output", "lora_fc1", "lora_fc2")
    assert dict(space.dims) == dict.fromkeys((*linears, "adapter_plus"), (1, 2, 4, 8))
    always = {"lora_fc1": (12,), "lora_fc2": (12,)}
    assert dict(space.depths) == {**dict.fromkeys(space.dims, (0, 12)), **always}
    assert SearchSpace.wide(4, ["lora_key", "ssf"]) == SearchSpace(
        4, {"lora_key": (1, 2, 4, 8), "ssf": (1,)}, {"lora_key": (4,), "ssf": (0, 4)}
    )


def test_a_random_architecture_of_the_wide_space_is_of_about_the_papers_budget():
    per_dim = {**dict.fromkeys(("lora_query", "lora_key", "lora_value", "lora_output"), 2 * 768),
               **dict.fromkeys(("lora_fc1", "lora_fc2"), 768 + 3072), "adapter_plus": 4 * 768 + 2}  # fmt: skip

    def count(architecture):  # in a ViT-B/16
        fixed = 4 * 768 * sum(dim > 0 for dim in architecture["adapter_plus"])
        return fixed + sum(per_dim[name] * sum(row) for name, row in architecture.items())

    space, rng = SearchSpace.wide(), random.Random(0)
    counts = [count(space.sample(rng)) for _ in range(2_000)]
    assert sum(counts) / len(counts) == pytest.approx(570_000, rel=0.02)
    assert count(space.largest()) == pytest.approx(1_660_000, rel=0.01)
    assert sum(number <= 640_000 for number in counts) > len(counts) // 2


def test_a_named_space_can_have_other_blocks_and_modules():
    assert SearchSpace.vtab(4, modules=["mine"]) == SearchSpace(4, {"mine": [1, 5, 10]}, {"mine": [1, 2, 3, 4]})
    assert SearchSpace.few_shot(4, modules="ssf").dims == {"ssf": (1,)}
    assert SearchSpace.few_shot(4, modules="vpt") == SearchSpace(4, {"vpt": [5, 10, 50, 100]})


@pytest.mark.parametrize(
    ("blocks", "depths"),
    [
        (12, (3, 6, 9, 12)),
        (24, (6, 12, 18, 24)),
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (5, (1, 3, 4, 5)),
        (6, (2, 3, 5, 6)),
        (7, (2, 4, 5, 7)),
    ],
)
def test_default_depths_are_the_quarters_of_the_blocks_rounded_halves_up(blocks, depths):
    assert default_depths(blocks) == depths


@unhurried
@given(st.integers(1, MAX_BLOCKS))
def test_default_depths_are_distinct_lie_in_the_blocks_and_end_at_the_last(blocks):
    depths = default_depths(blocks)
    assert list(depths) == sorted(set(depths)) and depths[0] >= 1 and depths[-1] == blocks


def test_a_space_sorts_its_choices_and_drops_repeats():
    space = SearchSpace(4, {"lora": [10, 1, 1]}, {"lora": [4, 0, 4]})
    assert space.dims["lora"] == (1, 10) and space.depths["lora"] == (0, 4)
    assert space.max_dim("lora") == 10
    with pytest.raises(ValueError, match=r"no module 'vpt' in this search space \(modules: lora\)"):
        space.max_dim("vpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, {"lora": [1]}), "num_blocks is 0"),
        ((10**9, {"lora": [1]}), "num_blocks is 1000000000; give a whole number from 1 to 4,096"),
        ((4, {"lora": [-1]}), "dims of 'lora' is -1; give a whole number from 0 to 65,536"),
        ((4, {"lora": [10**9]}), "is 1000000000"),
        ((4, {"lora": [1.5]}), "is 1.5"),
        ((4, {"lora": []}), "dims of 'lora' has 0 entries"),
        ((4, {"lora": range(10**9)}), "has 1,000,000,000 entries"),
        ((4, {}), "at least one prompt module"),
        ((4, [1]), "dims is"),
        ((4, {"lora": [1]}, {"lora": [5]}), "depths of 'lora' is 5; give a whole number from 0 to 4"),
        ((4, {"lora": [1]}, {"lora": [True]}), "depths of 'lora' is True"),
        ((4, {"lora": [1]}, {"vpt": [1]}), "depths are given for vpt, but dims only for lora"),
        ((4, {"lora": [1]}, {"lora": []}), "depths of 'lora' has 0 entries"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(*arguments)


def test_spaces_are_equal_and_hash_alike_whatever_the_order_of_rows():
    a = SearchSpace(2, {"lora": [1], "vpt": [2]}, {"lora": [1], "vpt": [2]})
    b = SearchSpace(2, {"vpt": [2], "lora": [1]}, {"vpt": [2], "lora": [1]})
    assert a == b and hash(a) == hash(b) and a != SearchSpace(2, {"lora": [1], "vpt": [2]})
    with pytest.raises(AttributeError):
        a.num_blocks = 3
    with pytest.raises(TypeError):
        a.dims["lora"] = (2,)


@unhurried
@given(spaces())
def test_a_space_survives_every_round_trip(space):
    copies = [
        SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))),
        pickle.loads(pickle.dumps(space)),
        copy.deepcopy(space),
        eval(repr(space)),
    ]
    for other in copies:
        assert other == space and hash(other) == hash(space) and list(other.dims) == list(space.dims)


@pytest.mark.parametrize("data", [None, [], {}, {"num_blocks": 2, "dims": {"lora": [1]}}, {"num_blocks": 2, "x": 1}])
def test_a_dict_of_something_else_is_no_space(data):
    with pytest.raises(ValueError, match="a search space"):
        SearchSpace.from_dict(data)


def brute_force(space: SearchSpace) -> set[Architecture]:
    """Every assignment of dims or 0 to every block, kept where each row is a leading run of an allowed depth."""
    found = set()
    values = {name: (0, *dims) for name, dims in space.dims.items()}
    for flat in product(*(values[name] for name in space.dims for _ in range(space.num_blocks))):
        rows = {name: flat[i * space.num_blocks : (i + 1) * space.num_blocks] for i, name in enumerate(space.dims)}
        depths = {name: sum(dim > 0 for dim in row) for name, row in rows.items()}
        runs = all(all(row[: depths[name]]) and depths[name] in space.depths[name] for name, row in rows.items())
        if runs:
            found.add(Architecture(rows))
    return found


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(3, {"lora": [1, 5]}, {"lora": [0, 2, 3]}),
        SearchSpace(2, {"lora": [1, 5, 10], "vpt": [4]}, {"lora": [1, 2], "vpt": [0, 1]}),
        SearchSpace(2, {"a": [1], "b": [2, 3], "c": [7]}),
        SearchSpace(1, {"lora": [3]}, {"lora": [0]}),
    ],
)
def test_size_iteration_and_membership_agree_with_brute_force(space):
    expected = brute_force(space)
    listed = list(space)
    assert len(listed) == len(set(listed)) == space.size() == len(expected)
    assert set(listed) == expected
    assert all(architecture in space for architecture in expected)


BY_BLOCK = SearchSpace(3, {"lora": (0, 2, 4), "ssf": [[0], [1], [0, 1]], "vpt": [5]}, {"vpt": [0, 3]})


def test_each_block_may_choose_for_itself():
    lora, ssf = list(product((0, 2, 4), repeat=3)), [(0, 1, 0), (0, 1, 1)]
    expected = {Architecture(lora=a, ssf=b, vpt=c) for a, b, c in product(lora, ssf, [(0, 0, 0), (5, 5, 5)])}
    assert set(BY_BLOCK) == expected and BY_BLOCK.size() == len(expected) == len(list(BY_BLOCK))
    assert all(architecture in BY_BLOCK for architecture in expected)
    assert Architecture(lora=[1, 0, 0], ssf=[0, 1, 0], vpt=[0, 0, 0]) not in BY_BLOCK
    assert Architecture(lora=[2, 0, 0], ssf=[1, 1, 0], vpt=[0, 0, 0]) not in BY_BLOCK
    assert BY_BLOCK.smallest() == Architecture(lora=[0] * 3, ssf=[0, 1, 0], vpt=[0] * 3)
    assert BY_BLOCK.largest() == Architecture(lora=[4] * 3, ssf=[0, 1, 1], vpt=[5] * 3)
    assert (BY_BLOCK.max_dim("ssf"), BY_BLOCK.choices("ssf", 2), BY_BLOCK.all_dims("vpt")) == (1, (0, 1), (0, 5))
    drawn = {BY_BLOCK.sample(random.Random(seed)) for seed in range(2_000)}
    assert drawn == expected
    again = SearchSpace.from_dict(json.loads(json.dumps(BY_BLOCK.to_dict())))
    assert again == BY_BLOCK and hash(again) == hash(BY_BLOCK) and pickle.loads(pickle.dumps(again)) == again


@pytest.mark.parametrize(
    ("dims", "depths", "said"),
    [
        ({"lora": [[1], [2]]}, {}, "dims of 'lora' are for 2 blocks, but the space is for 3. Give one list a block"),
        ({"lora": [[1], 2, [3]]}, {}, "dims of 'lora' in block 1 is 2; give a list of whole numbers"),
        ({"lora": [[1], [], [3]]}, {}, "dims of 'lora' in block 1 has 0 entries"),
        ({"lora": [0, 4]}, {"lora": [1, 2]}, "row 'lora' has depths, but each of its blocks chooses for itself"),
        ({"lora": [[0], [0], [0]]}, {}, "dims of 'lora' are 0 in every block. Leave the row out"),
        ({"lora": [0]}, {}, "dims of 'lora' are 0 in every block"),
    ],
)
def test_choices_of_a_block_that_cannot_be_are_refused(dims, depths, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        SearchSpace(3, dims, depths)


def test_the_size_of_the_papers_space_is_exact():
    assert SearchSpace.vtab().size() == (3**3 + 3**6 + 3**9 + 3**12) ** 3


@pytest.mark.parametrize(
    "stranger",
    [
        Architecture(lora=[1, 5, 0], vpt=[1, 0, 0]),  # other number of blocks
        Architecture(lora=[1, 5]),  # a module is missing
        Architecture(lora=[1, 5], vpt=[1, 1], ssf=[1, 1]),  # a module too many
        Architecture(lora=[1, 2], vpt=[1, 1]),  # a dim that is not offered
        Architecture(lora=[1, 0], vpt=[1, 1]),  # a depth that is not offered
        Architecture(lora=[0, 5], vpt=[1, 1]),  # a hole
        {"lora": (1, 5), "vpt": (1, 1)},
        None,
    ],
)
def test_what_differs_in_one_point_is_no_member(stranger):
    space = SearchSpace(2, {"lora": [1, 5], "vpt": [1]}, {"lora": [2], "vpt": [1, 2]})
    assert Architecture(lora=[1, 5], vpt=[1, 1]) in space
    assert stranger not in space


@unhurried
@given(spaces(), st.integers(0, 1000))
def test_samples_and_corners_are_members_and_samples_lie_between_the_corners(space, seed):
    sample, smallest, largest = space.sample(random.Random(seed)), space.smallest(), space.largest()
    assert sample in space and smallest in space and largest in space
    assert list(sample) == list(space.dims)
    for name, row in sample.items():
        assert all(low <= dim <= high for low, dim, high in zip(smallest[name], row, largest[name], strict=True))


def test_the_corners_have_the_extreme_depths_and_dims():
    space = SearchSpace(3, {"lora": [2, 5], "vpt": [1, 7]}, {"lora": [1, 2], "vpt": [0, 3]})
    assert space.smallest() == Architecture(lora=[2, 0, 0], vpt=[0, 0, 0])
    assert space.largest() == Architecture(lora=[5, 5, 0], vpt=[7, 7, 7])


def test_a_sample_draws_a_depth_and_then_a_dim_for_each_carrying_block():
    space = SearchSpace(3, {"vpt": [1, 9], "lora": [2, 5]}, {"vpt": [1, 3], "lora": [0, 2]})
    rng = Script(2, 5, 2, 3, 9, 1, 9)  # lora: depth, 2 dims; vpt: depth, 3 dims
    assert space.sample(rng) == Architecture(lora=[5, 2, 0], vpt=[9, 1, 9])
    assert rng.draws == []


def test_equal_spaces_give_equal_samples_whatever_the_order_of_rows():
    a = SearchSpace(6, {"lora": [1, 5], "vpt": [1, 5]})
    b = SearchSpace(6, {"vpt": [1, 5], "lora": [1, 5]})
    assert [a.sample(random.Random(seed)) for seed in range(20)] == [
        b.sample(random.Random(seed)) for seed in range(20)
    ]


def test_sampling_is_uniform_over_depths_and_then_over_dims():
    space = SearchSpace(2, {"lora": [1, 5], "vpt": [3]}, {"lora": [1, 2], "vpt": [0, 1, 2]})
    rng, draws = random.Random(0), 6_000
    seen = Counter(space.sample(rng) for _ in range(draws))
    expected = {a: draws / 2 / 2 ** a.depth("lora") / 3 for a in space}
    chi2 = sum((seen[a] - count) ** 2 / count for a, count in expected.items())
    # 18 cells: 17 degrees of freedom, 99.9th percentile 40.8. Uniform over architectures would give about 670.
    assert len(seen) == space.size() == 18 and chi2 < 40.8


def test_the_docstrings_examples_run():
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
