"""Infinite item number -> (epoch, sample id): epochs follow each other, each in its own order."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.arrays import Ints, equal_runs
from data.index.shuffle_blocks import ShuffleBlocks
from data.order import lanes as lane_places
from data.order.epoch import EpochOrder, assign_lanes

__all__ = ["LocatedSamples", "SampleStream", "split_epochs"]


@dataclass(frozen=True)
class LocatedSamples:
    """`sample_ids[i]` is read in epoch `epochs[i]`."""

    epochs: Ints
    sample_ids: Ints


class SampleStream:
    """The samples of epoch 0, then of epoch 1, …: shuffled by (fingerprint, seed, epoch), or natural with seed None.

    A lane keeps its shards in every epoch. Lanes have nearly equal `weights` per block; samples by default.
    """

    def __init__(
        self,
        blocks: ShuffleBlocks,
        window_bytes: int,
        fingerprint: str,
        seed: int | None,
        lanes: int = 1,
        weights: Ints | None = None,
    ) -> None:
        self.blocks = blocks
        self.count = blocks.count
        self.lanes = lanes
        self._window_bytes = window_bytes
        # With the fingerprint: the same data in another place has the same order, other data under its name has not.
        self._key = None if seed is None else (fingerprint, seed)
        self._lane_blocks = assign_lanes(blocks, lanes, self._key, weights)
        # Two epochs meet in one batch; natural order is the same in each.
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self._lane_blocks, self._window_bytes, self._key, epoch)

    def locate(self, items: Ints) -> LocatedSamples:
        """Item q is position q % count of epoch q // count."""
        epochs, positions = np.divmod(items, self.count)
        places = lane_places.places(positions, self.count, self.lanes)
        sample_ids = np.empty(len(items), np.int64)
        by_epoch = np.argsort(epochs, kind="stable")
        for epoch, a, b in equal_runs(epochs[by_epoch]):
            chosen = by_epoch[a:b]
            sample_ids[chosen] = self.order(epoch).at(places[chosen])
        return LocatedSamples(epochs, sample_ids)


def split_epochs(start: int, stop: int, epoch_length: int) -> list[tuple[int, int, int]]:
    """(epoch, a, b) ranges of start … stop-1, with a and b counted within the epoch."""
    ranges = []
    while start < stop:
        epoch, a = divmod(start, epoch_length)
        b = min(a + stop - start, epoch_length)
        ranges.append((epoch, a, b))
        start += b - a
    return ranges
