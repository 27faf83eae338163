"""Samples as they lie in the shards, undecoded, in batches: planned for many batches at once."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.index.catalog import Catalog
from data.order.epochs import SampleStream

_PLANNED_SAMPLES = 1024


class RawBatches:
    """For every batch, and each of these parts, which all samples have: a list of views, as of Catalog.view."""

    def __init__(self, catalog: Catalog, stream: SampleStream, parts: Sequence[str], batch: int) -> None:
        self._catalog = catalog
        self._stream = stream
        self._parts = [catalog.required_part(name) for name in parts]
        self._batch = batch

    def read(self, start: int, stop: int) -> Iterator[list[list[memoryview]]]:
        """Items start … stop-1 of the stream; the last batch may be short. DataError names shard and sample."""
        planned = max(1, _PLANNED_SAMPLES // self._batch) * self._batch
        for first in range(start, stop, planned):
            samples = self._stream.locate(np.arange(first, min(first + planned, stop))).sample_ids
            places = self._catalog.places(self._parts, samples)
            for at in range(0, len(samples), self._batch):
                yield self._catalog.views(places, at, at + self._batch)


def gather(views: Sequence[memoryview], into: memoryview) -> list[int]:
    """Copy the views end to end into a buffer; view i then fills bytes bounds[i] … bounds[i + 1] - 1."""
    bounds = [0]
    for view in views:
        start = bounds[-1]
        bounds.append(start + len(view))
        into[start : bounds[-1]] = view
    return bounds
