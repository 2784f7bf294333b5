"""A long run does not grow."""

import gc
import platform
import tracemalloc

import pytest
import torch
from launched_training import make_images, make_supernet, normalize

from peft_noah.training import ArchitectureSampler
from peft_noah.training.evaluation import evaluate
from peft_noah.training.memory import keep_freed_memory, peak_memory, start_measuring
from peft_noah.training.processes import make_accelerator


def growth(work, times):
    """Bytes and objects that ``times`` calls leave behind, after as many that fill Python's free lists and caches.

    The smaller of two such differences: a leak is in both, a cache that grows late in a long process in one.
    """
    tracemalloc.start()
    try:
        marks = []
        for index in range(3 * times):
            work(index)
            if index % times == times - 1:
                gc.collect()
                marks.append((tracemalloc.get_traced_memory()[0], len(gc.get_objects())))
    finally:
        tracemalloc.stop()
    first, second, third = marks
    return [min(b - a, c - b) for a, b, c in zip(first, second, third, strict=True)]


def test_sampling_and_training_leave_nothing_behind():
    model = make_supernet().train()
    sampler, pixels = ArchitectureSampler(model.get_search_space()), torch.rand(2, 3, 16, 16)

    def step(index):
        model.set_architecture(sampler(index))
        model(pixel_values=pixels).logits.sum().backward()
        model.zero_grad()

    size, objects = growth(step, 100)
    # an object kept per step would be 100 of them; what Python itself caches has been seen to take 31 kB
    assert size < 50_000 and objects < 50


def test_scoring_candidates_leaves_nothing_behind():
    model, accelerator, images = make_supernet(), make_accelerator(), make_images()
    sampler = ArchitectureSampler(model.get_search_space())

    def score(index):
        model.set_architecture(sampler(index))
        evaluate(model, images, normalize, accelerator)

    size, objects = growth(score, 50)
    # what Python itself caches has been seen to take 55 kB late in a long process
    assert size < 100_000 and objects < 25


def test_the_peak_counts_what_was_given_back():
    pytest.importorskip("resource")
    device = torch.device("cpu")
    start_measuring(device)
    before = peak_memory(device)
    torch.ones(before // 4 + 100_000_000)  # more than what the process has freed so far, and then freed
    assert peak_memory(device) >= before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what other C libraries do with freed memory is theirs")
def test_a_step_of_training_gets_the_memory_that_the_last_one_freed():
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2_000_000) for _ in range(40)]  # 320 MB, 78,000 pages
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    given_back = faults()
    with keep_freed_memory(torch.device("cpu")):
        faults()
        kept = faults()
    assert kept < 0.1 * given_back
    assert faults() > 0.5 * given_back  # the context has ended
