"""Concatenate-and-split: where the tokens of each row lie in the stream of documents. Pure."""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data import draws
from data.arrays import Ints
from data.order.epoch import overlaps
from data.order.epochs import SampleStream, split_epochs
from data.order.row_order import ROW_WINDOW_TOKENS, RowGroup, RowOrder
from data.text.document_lengths import DocumentLengths


class TokenSpan(NamedTuple):
    """Inputs first … last-1 of a document (a sample id), from place `at` of a row.

    With `has_next`, the document's token `last` is the target of the last of them. A span may have no inputs, but
    the target of the span before it.
    """

    sample: int
    first: int
    last: int
    at: int
    has_next: bool


class DocumentRange:
    """Documents in stream order: `samples[i]` is stream tokens starts[i] … starts[i+1]-1."""

    def __init__(self, samples: Ints, starts: Ints) -> None:
        # One number is looked up several times as fast in a memoryview as in an array.
        self._samples = samples.data
        self._starts = starts.data

    def spans(self, start: int, stop: int) -> list[TokenSpan]:
        """What a row with inputs start … stop-1 is made of; token `stop`, the last target, is in the documents too."""
        spans = []
        i = bisect_right(self._starts, start) - 1
        token, has_next = start, False
        # On to the document with token `stop`, the target of the last input.
        while not has_next:
            origin, end = self._starts[i], self._starts[i + 1]
            if end > token:  # empty documents have no token in the stream
                last, has_next = min(end, stop), end > stop
                spans.append(TokenSpan(self._samples[i], token - origin, last - origin, token - start, has_next))
                token = last
            i += 1
        return spans


class TokenStream:
    """All documents of epoch 0 in order, then of epoch 1, …, as one stream of tokens.

    `lengths` counts a document's tokens, its end-of-document token included.
    """

    def __init__(self, stream: SampleStream, lengths: DocumentLengths, block_tokens: Ints) -> None:
        self._stream = stream
        self._lengths = lengths
        self._block_tokens = block_tokens
        self.epoch_tokens = int(block_tokens.sum())
        self._window_tokens = lru_cache(maxsize=2)(self._tokens_before_windows)

    def documents(self, start: int, stop: int) -> DocumentRange:
        """The documents that stream tokens start … stop-1 (at least one) belong to; only their windows are read."""
        samples, before = [], []
        for epoch, a, b in split_epochs(start, stop, self.epoch_tokens):
            for window, c, d in overlaps(self._window_tokens(epoch), a, b):
                found, skipped = self._in_window(epoch, window, c, d)
                samples.append(found)
                before.append(skipped)
        joined = np.concatenate(samples)
        lengths = self._lengths.take(joined)
        return DocumentRange(joined, start - before[0] + np.concatenate(([0], np.cumsum(lengths))))

    def _in_window(self, epoch: int, window: int, start: int, stop: int) -> tuple[Ints, int]:
        """Documents that meet tokens start … stop-1 of a window, and the first one's tokens before `start`."""
        ids = self._stream.order(epoch).window(window)
        starts = np.concatenate(([0], np.cumsum(self._lengths.take(ids))))
        first = int(np.searchsorted(starts, start, "right")) - 1
        last = int(np.searchsorted(starts, stop, "left"))
        return ids[first:last], start - int(starts[first])

    def _tokens_before_windows(self, epoch: int) -> Ints:
        return self._stream.order(epoch).cumulative(self._block_tokens)


class ConcatenatedRows:
    """Row r of a pass has tokens r·T … r·T+T-1 of its epoch as inputs, each followed by its target.

    So no token is an input twice in a pass. With a `key` there are endless permuted passes of `count` full rows, which
    leave out the last tokens of their epoch, fewer than a row, other ones in each; fewer tokens than a row fill it
    several times over. With None there is one pass in order; its last token is a target only and its last row may be
    short.
    """

    def __init__(self, tokens: TokenStream, row_tokens: int, key: draws.Key | None, lanes: int) -> None:
        self._tokens = tokens
        self._row_tokens = row_tokens
        self._end = None if key is not None else tokens.epoch_tokens - 1
        full = tokens.epoch_tokens // row_tokens
        self.count = max(1, full) if self._end is None else -(-self._end // row_tokens)
        self._order = RowOrder(self.count, row_tokens, ROW_WINDOW_TOKENS, key, lanes)
        self._documents = lru_cache(maxsize=2 * lanes)(self._documents_of)

    def spans(self, items: Ints) -> Iterator[list[TokenSpan]]:
        """What the row of each item is made of, in order of place."""
        for group, row in self._order.rows(items):
            yield self._documents(group).spans(*self._inputs(group.pass_number, row, row + 1))

    def _documents_of(self, group: RowGroup) -> DocumentRange:
        start, stop = self._inputs(group.pass_number, group.first, group.stop)
        # With the target of the last input.
        return self._tokens.documents(start, stop + 1)

    def _inputs(self, pass_number: int, first: int, stop: int) -> tuple[int, int]:
        """The stream tokens that are inputs of rows first … stop-1 of a pass."""
        origin = pass_number * self._tokens.epoch_tokens
        start, end = origin + first * self._row_tokens, origin + stop * self._row_tokens
        return start, end if self._end is None else min(end, self._end)
