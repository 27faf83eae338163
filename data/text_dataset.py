"""Rows of tokens, by position: documents concatenated, split and, for training, shuffled."""

from functools import lru_cache

import numpy as np

from configs.errors import DataError
from data.batch import Rows
from data.catalog import Catalog
from data.documents import Documents
from data.packing import Stretch, TokenStream
from data.row_order import ROW_WINDOW_TOKENS, RowGroup, RowOrder, Run
from data.stream import SampleStream
from data.types import Ints

IGNORED = -100


class TextDataset:
    """tokens_BT and targets_BT int64. Endless and shuffled with a seed; one pass in shard order with None."""

    def __init__(
        self, catalog: Catalog, documents: Documents, context: int, window_bytes: int, seed: int | None
    ) -> None:
        self.catalog = catalog
        self.fingerprint = f"{catalog.fingerprint} {documents.identity}"
        self._documents = documents
        self._context = context
        stream = SampleStream(catalog.blocks(), window_bytes, catalog.fingerprint, seed)
        self._tokens = TokenStream(stream, documents.lengths)
        epoch_tokens = self._tokens.epoch_tokens
        if epoch_tokens < 2:
            raise DataError(
                f"{catalog.shards[0]}: {epoch_tokens} tokens in {catalog.count} samples, where a row needs at least 2: "
                "name shards with text"
            )
        # A finite pass ends with its last token, which is only a target; its last row may be short.
        self._end = None if seed is not None else epoch_tokens
        self.count = epoch_tokens // context if seed is not None else -(-(epoch_tokens - 1) // context)
        key = None if seed is None else (catalog.fingerprint, seed)
        self._order = RowOrder(max(self.count, 1), context, ROW_WINDOW_TOKENS, key)
        self._stretch = lru_cache(maxsize=2)(self._stretch_of)

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        """Positions start … stop-1, then blanks: end of document with targets -100."""
        tokens = np.full(pad_to * self._context, self._documents.blank, np.int64)
        targets = np.full(pad_to * self._context, IGNORED, np.int64)
        at = 0
        for run in self._order.runs(start, stop):
            # The rows of a run are contiguous, and each shares one token with the next.
            found = self._read_tokens(run)
            tokens[at : at + len(found) - 1] = found[:-1]
            targets[at : at + len(found) - 1] = found[1:]
            at += len(found) - 1
        shape = (pad_to, self._context)
        arrays = {"tokens_BT": tokens.reshape(shape), "targets_BT": targets.reshape(shape)}
        return Rows(arrays, int((targets != IGNORED).sum()))

    def keys(self, start: int, stop: int) -> list[str]:
        """Per position, the documents of its row's T input tokens: `key[first:last]` ranges joined by `|`.

        The ranges of the rows of a pass cover its tokens once, without gaps or overlaps.
        """
        return [
            self._row_key(run.group, row) for run in self._order.runs(start, stop) for row in range(run.first, run.stop)
        ]

    def close(self) -> None:
        """Let go of open files."""
        self.catalog.fetcher.close()

    def _row_key(self, group: RowGroup, row: int) -> str:
        start = row * self._context
        spans = self._stretch(group).spans(start, self._clip(start + self._context))
        return "|".join(f"{self.catalog.key(span.sample)}[{span.first}:{span.last}]" for span in spans)

    def _read_tokens(self, run: Run) -> Ints:
        start, stop = run.first * self._context, self._clip(run.stop * self._context + 1)
        spans = self._stretch(run.group).spans(start, stop)
        return np.concatenate([self._documents.read(*span) for span in spans])

    def _stretch_of(self, group: RowGroup) -> Stretch:
        return self._tokens.stretch(group.first * self._context, self._clip(group.stop * self._context + 1))

    def _clip(self, stop: int) -> int:
        return stop if self._end is None else min(stop, self._end)
