"""The order of samples in an epoch: blocks permuted over the whole set, samples permuted inside windows. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from data import draw
from data.types import Ints

BLOCK_SAMPLES = 64


@dataclass(frozen=True)
class Blocks:
    """Runs of consecutive samples, none across two shards: block b holds `first[b]` … `first[b] + samples[b] - 1`."""

    first: Ints
    samples: Ints
    bytes: Ints

    def totals(self, per_sample: Ints) -> Ints:
        """The sum over each block of a number per sample."""
        return np.add.reduceat(per_sample, self.first)


def cut_blocks(shard_samples: Sequence[int], sample_bytes: Ints) -> Blocks:
    """Cut shards of these many samples (each at least one) into blocks of at most BLOCK_SAMPLES."""
    starts = np.cumsum([0, *shard_samples])
    first = np.concatenate([np.arange(a, b, BLOCK_SAMPLES) for a, b in pairwise(starts)])
    samples = np.diff(np.append(first, starts[-1]))
    return Blocks(first, samples, np.add.reduceat(sample_bytes, first))


class EpochOrder:
    """One epoch as a sequence of windows; position p of the epoch is sample `samples(p, p + 1)[0]`.

    The blocks are permuted, neighbours adding up to about `window_bytes` form a window, and samples are permuted
    inside it: reads stay within a window while every sample may meet every other over the epochs. With `key` None
    the order is that of the shards. Memory is O(blocks) plus two windows.
    """

    def __init__(self, blocks: Blocks, window_bytes: int, key: draw.Key | None) -> None:
        self.blocks = blocks
        self.key = key
        count = len(blocks.first)
        self.block_order = np.arange(count) if key is None else draw.permutation(count, ("blocks", *key))
        block_bytes = blocks.bytes[self.block_order]
        window_of_block = (np.cumsum(block_bytes) - block_bytes) // window_bytes
        starts = np.flatnonzero(np.diff(window_of_block, prepend=-1))
        self.window_blocks: Ints = np.append(starts, count)
        self.window_samples = self.cumulative(blocks.samples)
        self.window = lru_cache(maxsize=2)(self._window)

    def cumulative(self, per_block: Ints) -> Ints:
        """Sum of a number per block before each window, and over the whole epoch at the end."""
        return np.concatenate(([0], np.cumsum(per_block[self.block_order])))[self.window_blocks]

    def samples(self, start: int, stop: int) -> Ints:
        """Sample ids at positions start … stop-1 of the epoch; only their windows are worked out."""
        found = []
        for window, a, b in overlaps(self.window_samples, start, stop):
            found.append(self.window(window)[a:b])
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _window(self, window: int) -> Ints:
        """Sample ids of one window, in order."""
        chosen = self.block_order[self.window_blocks[window] : self.window_blocks[window + 1]]
        first, samples = self.blocks.first[chosen], self.blocks.samples[chosen]
        before = np.cumsum(samples) - samples
        ids = np.repeat(first - before, samples) + np.arange(samples.sum())
        return ids if self.key is None else ids[draw.permutation(len(ids), ("window", *self.key, window))]


def overlaps(bounds: Ints, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(interval, a, b) for each interval bounds[i] … bounds[i+1] that meets start … stop; a, b count from bounds[i]."""
    if stop <= start:
        return []
    first = int(np.searchsorted(bounds, start, "right")) - 1
    last = int(np.searchsorted(bounds, stop, "left"))
    return [
        (i, max(start - int(bounds[i]), 0), min(stop, int(bounds[i + 1])) - int(bounds[i])) for i in range(first, last)
    ]
