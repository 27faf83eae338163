"""The order of samples in an epoch: blocks permuted inside lanes, samples permuted inside windows of blocks. Pure."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data import draws
from data.arrays import Ints, equal_runs, ranges_of
from data.index.shuffle_blocks import Int32s, ShuffleBlocks

__all__ = ["overlaps"]


_FEW_PLACES = 256  # up to so many, one look-up each is faster than sorting them by window


@dataclass(frozen=True)
class LaneBlocks:
    """Which blocks each lane reads in every epoch: lane l has blocks order[starts[l]] … order[starts[l + 1] - 1]."""

    blocks: ShuffleBlocks
    order: Int32s
    starts: Ints

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return len(self.starts) - 1


def assign_lanes(blocks: ShuffleBlocks, lanes: int, key: draws.Key | None, weights: Ints | None = None) -> LaneBlocks:
    """Shards permuted by `key`, then cut into lanes of nearly equal weight: by default of samples, else per block.

    With `key` None the shards keep their order.
    """
    order = _blocks_of_permuted_shards(blocks.shard, key)
    weight = (blocks.samples if weights is None else weights)[order]
    ends = np.cumsum(weight, dtype=np.int64)
    # Lane l starts at the block into which the end of the l-th of `lanes` equal shares of the weight falls.
    bounds = np.searchsorted(ends, np.arange(1, lanes) * int(ends[-1]) // lanes, "right")
    return LaneBlocks(blocks, order, np.concatenate(([0], bounds, [len(order)])))


def _blocks_of_permuted_shards(shard: Int32s, key: draws.Key | None) -> Int32s:
    if key is None:
        return np.arange(len(shard), dtype=np.int32)
    per_shard = np.bincount(shard)
    starts = np.cumsum(per_shard) - per_shard
    shards = draws.permutation(len(per_shard), ("shards", *key))
    return ranges_of(starts[shards], per_shard[shards], 1).astype(np.int32)


class EpochOrder:
    """One epoch as a sequence of windows; place p of the epoch is sample `at([p])[0]`. Places run lane after lane.

    Each lane's blocks are permuted; neighbours adding up to about `window_bytes` divided by the number of lanes (at
    least one block) form a window, and samples are permuted inside it. Lanes are read side by side, so what is in use
    at any time is about `window_bytes`, whatever the number of lanes. With `key` None the order is that of the shards.
    Memory is O(blocks) plus the windows in use.
    """

    def __init__(self, lanes: LaneBlocks, window_bytes: int, key: draws.Key | None, epoch: int) -> None:
        self.blocks = lanes.blocks
        self._key = None if key is None else (*key, epoch)
        self.block_order = lanes.order if self._key is None else _permuted_blocks(lanes, self._key)
        self.window_blocks = _window_starts(self.blocks.bytes[self.block_order], lanes.starts, window_bytes)
        self.window_samples = self.cumulative(self.blocks.samples)
        # A batch meets one window of each lane, and the next one where a window ends.
        self.window = lru_cache(maxsize=2 * lanes.lanes)(self._window)

    def cumulative(self, per_block: Ints) -> Ints:
        """Sum of a number per block before each window, and over the whole epoch at the end."""
        sums = np.zeros(len(self.block_order) + 1, np.int64)
        np.cumsum(per_block[self.block_order], out=sums[1:])
        return sums[self.window_blocks]

    def at(self, places: Ints) -> Ints:
        """Sample ids at these places of the epoch; only their windows are worked out."""
        windows = np.searchsorted(self.window_samples, places, "right") - 1
        within = places - self.window_samples[windows]
        if len(places) <= _FEW_PLACES:  # of many lanes, each in another window
            ids = [self.window(w).item(i) for w, i in zip(windows.tolist(), within.tolist(), strict=True)]
            return np.array(ids, np.int64)
        by_window = np.argsort(windows, kind="stable")
        found = np.empty(len(places), np.int64)
        for window, a, b in equal_runs(windows[by_window]):
            chosen = by_window[a:b]
            found[chosen] = self.window(window)[within[chosen]]
        return found

    def samples(self, start: int, stop: int) -> Ints:
        """Sample ids at places start … stop-1."""
        return self.at(np.arange(start, stop))

    def _window(self, window: int) -> Ints:
        """Sample ids of one window, in order."""
        chosen = self.block_order[self.window_blocks[window] : self.window_blocks[window + 1]]
        # The key has the window's number, so that any window is worked out without those before it.
        ids = ranges_of(self.blocks.first[chosen], self.blocks.samples[chosen], 1)
        return ids if self._key is None else ids[draws.permutation(len(ids), ("window", *self._key, window))]


def _permuted_blocks(lanes: LaneBlocks, key: draws.Key) -> Int32s:
    """The blocks of each lane in an order of their own."""
    order = lanes.order.copy()
    for lane in range(lanes.lanes):
        blocks = order[lanes.starts[lane] : lanes.starts[lane + 1]]
        # A lane keeps its blocks in every epoch: what a node has cached of them serves it again.
        blocks[:] = blocks[draws.permutation(len(blocks), ("blocks", *key, lane))]
    return order


def _window_starts(block_bytes: Ints, lane_starts: Ints, window_bytes: int) -> Ints:
    """Where each window starts, and the number of blocks at the end; no window crosses lanes."""
    # Bytes before each block, counted from the start of its lane; empty lanes have no first block to count from.
    before = np.cumsum(block_bytes) - block_bytes
    sizes = np.diff(lane_starts)
    filled = lane_starts[:-1][sizes > 0]
    before -= np.repeat(before[filled], sizes[sizes > 0])
    # A block lies in the window that its first byte falls into.
    before //= max(1, window_bytes // len(sizes))
    opens = np.ones(len(before) + 1, np.bool_)
    np.not_equal(before[1:], before[:-1], out=opens[1:-1])
    opens[filled] = True
    return np.flatnonzero(opens)


def overlaps(bounds: Ints, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(interval, a, b) for each interval bounds[i] … bounds[i+1] that meets start … stop; a, b count from bounds[i]."""
    if stop <= start:
        return []
    first = int(np.searchsorted(bounds, start, "right")) - 1
    last = int(np.searchsorted(bounds, stop, "left"))
    return [
        (i, max(start - int(bounds[i]), 0), min(stop, int(bounds[i + 1])) - int(bounds[i])) for i in range(first, last)
    ]
