"""Which images a process computes at each step: its share of a global batch that the number of processes leaves alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class Shares(Sampler[list[int]]):
    """The micro-batches of one process, step by step, from any step of any epoch on.

    An epoch is one permutation of the images that depends on seed and epoch alone, cut into global batches; the last one
    may be short. A global batch is cut into one share per process, and a share into micro-batches; sizes differ by one
    at most, and no image is repeated or left out. All processes have equally many micro-batches: one that would be empty
    holds the batch's first image with a count of 0, so that its process takes part in every exchange, with zeros.

    Args:
        size: images in all.
        batch_size: images per step, over all processes together.
        seed: of the permutations.
        accumulate: micro-batches per step and process.
        process: index of this process.
        num_processes: how many there are.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, *, accumulate: int = 1, process: int = 0, num_processes: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.accumulate, self.process, self.num_processes = accumulate, process, num_processes
        self.steps = -(-size // batch_size)
        self.epoch, self.start = 0, 0

    def start_at(self, epoch: int, step: int) -> Shares:
        """Set where the next iteration begins: at ``step`` of ``epoch``, both counted from 0."""
        self.epoch, self.start = epoch, step
        return self

    def batch(self, step: int) -> int:
        """Images of the global batch at ``step`` of an epoch."""
        return min(self.batch_size, self.size - step * self.batch_size)

    def counts(self, step: int) -> list[int]:
        """Images of each micro-batch of this process at ``step``."""
        low, high = self._cut(0, self.batch(step), self.process, self.num_processes)
        largest_share = -(-self.batch(step) // self.num_processes)
        parts = min(self.accumulate, largest_share)
        cuts = (self._cut(low, high, part, parts) for part in range(parts))
        return [end - begin for begin, end in cuts]

    @staticmethod
    def _cut(low: int, high: int, part: int, parts: int) -> tuple[int, int]:
        return low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts

    def __len__(self) -> int:
        return sum(len(self.counts(step)) for step in range(self.start, self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for step in range(self.start, self.steps):
            first = step * self.batch_size
            at = first + self._cut(0, self.batch(step), self.process, self.num_processes)[0]
            for count in self.counts(step):
                yield order[at : at + count] or order[first : first + 1]
                at += count
