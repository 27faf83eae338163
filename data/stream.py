"""Infinite position -> (epoch, sample id): epochs follow each other, each in its own order."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.order import Blocks, EpochOrder
from data.types import Ints


@dataclass(frozen=True)
class Located:
    """`sample_ids[i]` is read in epoch `epochs[i]`."""

    epochs: Ints
    sample_ids: Ints


class SampleStream:
    """The samples of epoch 0, then of epoch 1, …: shuffled by (fingerprint, seed, epoch), or natural with seed None."""

    def __init__(self, blocks: Blocks, window_bytes: int, fingerprint: str, seed: int | None) -> None:
        self.blocks = blocks
        self.count = int(blocks.samples.sum())
        self._window_bytes = window_bytes
        self._fingerprint = fingerprint
        self._seed = seed
        # Two epochs meet in one batch; natural order is the same in each.
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> EpochOrder:
        key = None if self._seed is None else (self._fingerprint, self._seed, epoch)
        return EpochOrder(self.blocks, self._window_bytes, key)

    def locate(self, start: int, stop: int) -> Located:
        """What lies at positions start … stop-1 of the stream."""
        pieces = [(epoch, self.order(epoch).samples(a, b)) for epoch, a, b in split_epochs(start, stop, self.count)]
        return Located(
            np.concatenate([np.full(len(ids), epoch, np.int64) for epoch, ids in pieces] or [np.empty(0, np.int64)]),
            np.concatenate([ids for _, ids in pieces] or [np.empty(0, np.int64)]),
        )


def split_epochs(start: int, stop: int, epoch_length: int) -> list[tuple[int, int, int]]:
    """(epoch, a, b) pieces of start … stop-1, with a and b counted within the epoch."""
    pieces = []
    while start < stop:
        epoch, a = divmod(start, epoch_length)
        b = min(a + stop - start, epoch_length)
        pieces.append((epoch, a, b))
        start += b - a
    return pieces
