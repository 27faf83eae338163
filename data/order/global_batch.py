"""Global batch -> what lies at each of its positions, arranged so that a slice of the batch reads few shards. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.arrays import Ints
from data.order.mixture import Mixture

__all__ = ["Arrangement"]


@dataclass(frozen=True)
class PlacedItems:
    """Item items[i] of source sources[i], position by position."""

    sources: Ints
    items: Ints


class Arrangement:
    """Global batch n is positions n·B … n·B+B-1 of the mixture, sorted by lane.

    The lane of an item of a source with `counts[source]` items per epoch is (item % count) % lanes. A contiguous slice
    of a batch thus holds few lanes, and the same slice of every batch nearly the same ones.
    """

    def __init__(self, mixture: Mixture, counts: Sequence[int], lanes: int, batch: int) -> None:
        self._mixture = mixture
        self._counts = np.array(counts)
        self._lanes = lanes
        self._batch_size = batch
        # A step may meet the end of one batch and the start of the next.
        self._batch = lru_cache(maxsize=2)(self._arrange_batch)

    def at(self, start: int, stop: int) -> PlacedItems:
        """What lies at positions start … stop-1."""
        size, batches = self._batch_size, list[PlacedItems]()
        for number in range(start // size, -(-stop // size)):
            batch, first = self._batch(number), number * size
            a, b = max(start - first, 0), stop - first
            batches.append(PlacedItems(batch.sources[a:b], batch.items[a:b]))
        if len(batches) == 1:
            return batches[0]
        none = np.empty(0, np.int64)
        return PlacedItems(
            np.concatenate([none, *(found.sources for found in batches)]),
            np.concatenate([none, *(found.items for found in batches)]),
        )

    def _arrange_batch(self, number: int) -> PlacedItems:
        first = number * self._batch_size
        stop = (
            first + self._batch_size if self._mixture.end is None else min(first + self._batch_size, self._mixture.end)
        )
        sources, items = self._mixture.locate(np.arange(first, stop))
        # Stable, so that the order is the same on every machine.
        by_lane = np.argsort(items % self._counts[sources] % self._lanes, kind="stable")
        return PlacedItems(sources[by_lane], items[by_lane])
