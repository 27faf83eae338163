"""Concatenate-and-split: where each token of the stream of documents lies. Pure; rows follow from position alone."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.order import overlaps
from data.stream import SampleStream, split_epochs
from data.types import Ints


@dataclass(frozen=True)
class Span:
    """Tokens first … last-1 of a document (a sample id)."""

    sample: int
    first: int
    last: int


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
        self._document_tokens = lru_cache(maxsize=2)(self._tokens_before_documents)

    def spans(self, start: int, stop: int) -> list[Span]:
        """The pieces of documents that make up stream tokens start … stop-1, in order."""
        return [
            span
            for epoch, a, b in split_epochs(start, stop, self.epoch_tokens)
            for window, c, d in overlaps(self._window_tokens(epoch), a, b)
            for span in self._window_spans(epoch, window, c, d)
        ]

    def _window_spans(self, epoch: int, window: int, start: int, stop: int) -> list[Span]:
        ids = self._stream.order(epoch).window(window)
        pieces = overlaps(self._document_tokens(epoch, window), start, stop)
        return [Span(int(ids[document]), first, last) for document, first, last in pieces if last > first]

    def _tokens_before_windows(self, epoch: int) -> Ints:
        return self._stream.order(epoch).cumulative(self._block_tokens)

    def _tokens_before_documents(self, epoch: int, window: int) -> Ints:
        lengths = self._lengths[self._stream.order(epoch).window(window)]
        return np.concatenate(([0], np.cumsum(lengths)))
