"""Shares of the global batch: every image once, whatever the number of processes and micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from peft_noah.training.batches import Shares


def split(shares):
    """The micro-batches of an epoch by step, with those of count 0 left out."""
    batches, steps = iter(shares), []
    for step in range(shares.start, shares.steps):
        rows = [(next(batches), count) for count in shares.counts(step)]
        assert all(len(row) == max(count, 1) for row, count in rows)
        steps.append([row for row, count in rows if count])
    assert next(batches, None) is None
    return steps


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_processes_and_micro_batches_share_the_batches_of_one_process(size, batch_size, processes, accumulate, epoch):
    whole = split(Shares(size, batch_size, seed=7).start_at(epoch, 0))
    samplers = [
        Shares(size, batch_size, 7, accumulate=accumulate, process=p, num_processes=processes)
        for p in range(processes)
    ]
    parts = [split(sampler.start_at(epoch, 0)) for sampler in samplers]
    for step, (batch,) in enumerate(whole):
        assert len({len(part.counts(step)) for part in samplers}) == 1
        shares = [sum(part[step], []) for part in parts]
        assert sum(shares, []) == batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(row for (batch,) in whole for row in batch) == list(range(size))


def test_one_process_reads_what_torchs_own_sampler_would_give_it():
    order = torch.randperm(43, generator=torch.Generator().manual_seed(3 * 1_000_003 + 2)).tolist()
    expected = list(BatchSampler(order, 16, drop_last=False))
    assert list(Shares(43, 16, seed=3).start_at(2, 0)) == expected
    assert list(Shares(43, 16, seed=3).start_at(2, 1)) == expected[1:]
    assert len(Shares(43, 16, seed=3).start_at(2, 1)) == 2


def test_epochs_have_orders_of_their_own():
    first, second = (list(Shares(43, 43, seed=3).start_at(epoch, 0)) for epoch in (0, 1))
    assert first != second and sorted(first[0]) == sorted(second[0])


def test_a_process_without_images_still_gets_one_with_count_0():
    shares = Shares(17, 16, seed=0, process=0, num_processes=2)
    assert [shares.counts(step) for step in (0, 1)] == [[8], [0]]
    whole = list(Shares(17, 16, seed=0))
    assert list(shares)[1] == whole[1]


@pytest.mark.parametrize(("accumulate", "counts"), [(1, [5]), (2, [2, 3]), (8, [1, 1, 1, 1, 1])])
def test_micro_batches_differ_by_one_image_and_none_is_empty_where_there_are_images(accumulate, counts):
    assert Shares(5, 16, seed=0, accumulate=accumulate).counts(0) == counts
