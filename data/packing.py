"""Concatenate-and-split: where each token of the stream of documents lies. Pure; rows follow from position alone."""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.order import overlaps
from data.stream import SampleStream, split_epochs
from data.types import Ints


class Span(NamedTuple):
    """Tokens first … last-1 of a document (a sample id)."""

    sample: int
    first: int
    last: int


class Stretch:
    """Documents in stream order: `samples[i]` is stream tokens starts[i] … starts[i+1]-1."""

    def __init__(self, samples: Ints, starts: Ints) -> None:
        # One number is looked up several times as fast in a memoryview as in an array.
        self._samples = samples.data
        self._starts = starts.data

    def spans(self, start: int, stop: int) -> list[Span]:
        """The pieces of documents that make up stream tokens start … stop-1, in order."""
        spans = []
        i = bisect_right(self._starts, start) - 1
        while start < stop:
            origin, last = self._starts[i], min(stop, self._starts[i + 1])
            if last > start:
                spans.append(Span(self._samples[i], start - origin, last - origin))
            start = last
            i += 1
        return spans


class TokenStream:
    """All documents of epoch 0 in order, then of epoch 1, …, as one stream of tokens.

    `lengths[sample]` counts a document's tokens, its end-of-document token included. Row r of T tokens starts at
    stream token r·T and has T+1 tokens, so neighbours share one token and each token is a target exactly once.
    """

    def __init__(self, stream: SampleStream, lengths: Ints) -> None:
        self._stream = stream
        self._lengths = lengths
        self._block_tokens = stream.blocks.totals(lengths)
        self.epoch_tokens = int(self._block_tokens.sum())
        self._window_tokens = lru_cache(maxsize=2)(self._tokens_before_windows)

    def stretch(self, start: int, stop: int) -> Stretch:
        """The documents that stream tokens start … stop-1 (at least one) belong to; only their windows are read."""
        samples, before = [], []
        for epoch, a, b in split_epochs(start, stop, self.epoch_tokens):
            for window, c, d in overlaps(self._window_tokens(epoch), a, b):
                found, skipped = self._in_window(epoch, window, c, d)
                samples.append(found)
                before.append(skipped)
        joined = np.concatenate(samples)
        lengths = self._lengths[joined]
        return Stretch(joined, start - before[0] + np.concatenate(([0], np.cumsum(lengths))))

    def _in_window(self, epoch: int, window: int, start: int, stop: int) -> tuple[Ints, int]:
        """Documents that meet tokens start … stop-1 of a window, and the first one's tokens before `start`."""
        ids = self._stream.order(epoch).window(window)
        starts = np.concatenate(([0], np.cumsum(self._lengths[ids])))
        first = int(np.searchsorted(starts, start, "right")) - 1
        last = int(np.searchsorted(starts, stop, "left"))
        return ids[first:last], start - int(starts[first])

    def _tokens_before_windows(self, epoch: int) -> Ints:
        return self._stream.order(epoch).cumulative(self._block_tokens)
