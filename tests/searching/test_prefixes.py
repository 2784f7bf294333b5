"""Shared prefixes: the model's own logits with fewer blocks, within the memory that is allowed."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest
import torch
from conftest import make_model
from peft import get_peft_model

from peft_noah import NoahConfig
from peft_noah.architecture import Architecture
from peft_noah.fast import fast_forward
from peft_noah.searching.prefixes import PrefixCache

IMAGES = 16
STATM = Path("/proc/self/statm")
STATE = 5 * 24 * 4  # bytes of a float32 hidden state of one image: 5 tokens of width 24


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def make_supernet(family: str = "vit", **options):
    torch.manual_seed(0)
    return get_peft_model(make_model(family), NoahConfig(init_weights=False, **options)).eval()


@torch.inference_mode()
def logits(cache: PrefixCache, architecture: Architecture, pixels, images=range(IMAGES)):
    cache.model.set_architecture(architecture)
    return cache.logits(architecture, list(images), pixels[list(images)])


@torch.inference_mode()
def plain(model, architecture, pixels):
    model.set_architecture(architecture)
    return model(pixel_values=pixels).logits


def relatives(space, count=8, seed=0):
    """Architectures that share leading blocks in all ways: each differs from an earlier one from some block on."""
    rng = random.Random(seed)
    found = [space.sample(rng)]
    while len(found) < count:
        old, new, at = rng.choice(found), space.sample(rng), rng.randrange(4)
        found.append(Architecture({name: old[name][:at] + new[name][at:] for name in old}))
    return found


@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize(
    "options", [{}, {"recipe": "released"}, {"vpt_past_depth": "carry"}, {"vpt_position": "last"}]
)
def test_logits_are_the_models_own_bit_for_bit(family, options, pixels):
    model = make_supernet(family, **options)
    cache = PrefixCache(model, IMAGES, 1.0)
    for architecture in relatives(model.get_search_space(), 16):
        assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
    assert cache.reason is None and cache.blocks_shared > 8 * IMAGES


@pytest.mark.parametrize("past_depth", ["drop", "carry"])
def test_an_architecture_that_differs_in_the_last_block_runs_only_that(past_depth, pixels):
    model = make_supernet(vpt_past_depth=past_depth)
    cache = PrefixCache(model, IMAGES, 1.0)
    rows = {"lora": [1, 5, 10, 5], "adapter": [5, 5, 1, 0], "vpt": [10, 1, 5, 1]}
    for last in (1, 5, 10):
        logits(cache, Architecture({**rows, "lora": [1, 5, 10, last]}), pixels)
    run, shared = cache.blocks_run, cache.blocks_shared
    logits(cache, Architecture({**rows, "lora": [1, 5, 10, 0]}), pixels)
    assert (cache.blocks_run - run, cache.blocks_shared - shared) == (IMAGES, 3 * IMAGES)


def test_tokens_that_run_on_into_the_next_block_make_another_prefix(pixels):
    model = make_supernet(vpt_past_depth="carry")
    cache = PrefixCache(model, IMAGES, 1.0)
    with_tokens, without = Architecture(vpt=[5, 5, 5, 5]), Architecture(vpt=[5, 0, 0, 0])
    for architecture in (with_tokens, without, with_tokens, without):
        assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
    assert cache.reason is None


@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize("options", [{}, {"recipe": "released", "vpt_past_depth": "carry"}])
def test_the_fast_forward_shares_prefixes_too(family, options, pixels):
    model = make_supernet(family, **options)
    cache, architectures = PrefixCache(model, IMAGES, 1.0), relatives(model.get_search_space(), 12)
    with fast_forward(model) as fast:
        shared = [logits(cache, architecture, pixels) for architecture in architectures]
    assert fast.reason is None and cache.reason is None and cache.blocks_shared > 4 * IMAGES
    for architecture, found in zip(architectures, shared, strict=True):
        torch.testing.assert_close(
            found, plain(model, architecture, pixels), atol=1e-5, rtol=0
        )  # sums in another order


def test_images_seen_in_other_batches_give_the_same_up_to_rounding(pixels):
    model = make_supernet()
    cache = PrefixCache(model, IMAGES, 1.0)
    first, second, third = relatives(model.get_search_space(), 3)
    logits(cache, first, pixels, range(0, 9))
    logits(cache, first, pixels, range(9, 16))
    logits(cache, second, pixels, range(12, 3, -1))
    for architecture in (first, second, third):
        shared = logits(cache, architecture, pixels, [3, 11, 15, 0])
        expected = plain(model, architecture, pixels[[3, 11, 15, 0]])
        torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)  # kernels sum in an order that batches change
        assert torch.equal(shared.argmax(-1), expected.argmax(-1))


def test_a_prefix_serves_only_the_images_it_has_seen(pixels):
    model = make_supernet()
    cache = PrefixCache(model, IMAGES, 1.0)
    architecture = model.get_search_space().largest()
    for _ in range(2):
        logits(cache, architecture, pixels, range(8))
    run = cache.blocks_run
    logits(cache, architecture, pixels, range(4, 12))
    assert cache.blocks_run - run == 4 * 8


@pytest.mark.parametrize("states", [1, 3, 25])
def test_the_memory_stays_below_its_limit_and_results_are_the_same(states, pixels):
    model = make_supernet()
    cache = PrefixCache(model, IMAGES, (states * IMAGES * STATE + 7) / 1e9)
    for architecture in relatives(model.get_search_space(), 20):
        assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
        cache.end_candidate(may_have_children=False)
        assert cache.bytes == sum(state.memory.nbytes for state in cache._states.values()) <= cache.limit
    assert cache.bytes == states * IMAGES * STATE or states == 25
    assert cache.blocks_shared > 0
    cache.clear()
    assert cache.bytes == 0 and not cache._states


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_embeddings_are_computed_once_where_there_is_memory_for_them(family, pixels):
    model, calls = make_supernet(family), []
    cache = PrefixCache(model, IMAGES, 1.0)
    cache._embeddings.register_forward_hook(lambda module, args, output: calls.append(module.forward.__name__))
    architectures = [Architecture(lora=[dim, 1, 1, 1]) for dim in (1, 5, 10)]
    for architecture in architectures:
        assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
    # of `logits`: both checks look at the plain model too; of `plain`: each
    assert calls.count("forward") == 3 + 3 and calls.count("<lambda>") == 2
    tight = PrefixCache(model, IMAGES, (3 * IMAGES * STATE + 7) / 1e9)
    for architecture in architectures:
        logits(tight, architecture, pixels)
    assert all(key[0] for key in tight._states)


def test_a_state_takes_over_the_memory_of_a_larger_one(pixels):
    cache = PrefixCache(make_supernet(), IMAGES, 4 * IMAGES * 100 / 1e9)
    rows = torch.arange(IMAGES)
    cache._keep(((1,),), rows, torch.ones(IMAGES, 1, 100))
    memory = cache._states[((1,),)].memory
    cache._keep(((2,),), rows, torch.full((IMAGES, 3, 30), 2.0))
    assert cache._states[((2,),)].memory is memory and cache.bytes == memory.nbytes
    assert torch.equal(cache._states[((2,),)].values, torch.full((IMAGES, 3, 30), 2.0))
    cache._keep(((3,),), rows, torch.ones(IMAGES, 1, 95))
    assert cache._states[((3,),)].memory is memory
    cache._keep(((4,),), rows[:1], torch.ones(1, 1, 10))
    assert not cache._states[((4,),)].known[1:].any()


@pytest.mark.skipif(not STATM.exists(), reason="the process's memory is read from /proc")
def test_what_a_state_took_is_the_systems_again():
    """`malloc` would keep it for later states, between small blocks that stay."""
    torch.empty(7 * 2**20).fill_(1)  # after a block of 28 MB was freed, malloc keeps all smaller ones
    cache = PrefixCache(make_supernet(), IMAGES, 1.0)
    small, before = [], process_bytes()
    for index in range(20):
        cache._keep(((index,),), torch.arange(IMAGES), torch.ones(1, 2**16 + 64 * index).expand(IMAGES, -1))
        small.append(torch.ones(2**14))
    full, size = process_bytes(), cache.bytes
    assert full - before > 0.9 * size > 60e6
    cache.clear()
    assert full - process_bytes() > 0.95 * size


def process_bytes() -> int:
    """Resident memory of this process."""
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


def test_what_a_candidate_without_children_left_is_the_first_to_go(pixels):
    model = make_supernet()
    cache = PrefixCache(model, IMAGES, (2 * IMAGES * STATE + 7) / 1e9)  # two states, of the first block only
    good, bad, other = (Architecture(lora=[dim, 1, 1, 1]) for dim in (1, 5, 10))
    logits(cache, good, pixels)
    cache.end_candidate(may_have_children=True)
    logits(cache, bad, pixels)
    cache.end_candidate(may_have_children=False)
    logits(cache, other, pixels)
    cache.end_candidate(may_have_children=True)
    assert [key[0][0] for key in cache._states] == [1, 10]


# --- models that it cannot serve -----------------------------------------------------------------------------------


def test_no_memory_or_an_unknown_model_is_a_plain_call_with_a_reason(pixels):
    model = make_supernet()
    architecture = model.get_search_space().largest()
    cache = PrefixCache(model, IMAGES, 0.0)
    assert cache.reason == "no memory is allowed for it"
    assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
    model.base_model.model.config.model_type = "swin"
    assert PrefixCache(model, IMAGES, 1.0).reason == "the model's blocks are not known"


def test_a_model_that_does_more_between_its_blocks_is_found_out_and_runs_as_it_is(pixels, monkeypatch):
    model = make_supernet()
    core = model.base_model.model.vit
    forward = type(core).forward

    def odd(self, *args, **kwargs):
        if len(self.layers) != 4 or any(not hasattr(layer, "mlp") for layer in self.layers):
            raise TypeError("four blocks are expected")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(core), "forward", odd)
    cache = PrefixCache(model, IMAGES, 1.0)
    architecture = model.get_search_space().largest()
    for _ in range(2):
        assert torch.equal(logits(cache, architecture, pixels), plain(model, architecture, pixels))
    assert cache.reason == "the model does more between its blocks than hand hidden states on"
    assert cache.bytes == 0 and len(core.layers) == 4


def test_the_models_blocks_are_in_place_again_after_an_error(pixels):
    model = make_supernet()
    cache = PrefixCache(model, IMAGES, 1.0)
    blocks, architecture = model.base_model.model.vit.layers, model.get_search_space().largest()
    for _ in range(2):
        logits(cache, architecture, pixels)

    def fail(*_):
        raise ValueError("at last")

    blocks[3].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="at last"):
        logits(cache, architecture, pixels)
    assert model.base_model.model.vit.layers is blocks
    assert "forward" not in model.base_model.model.vit.embeddings.__dict__
