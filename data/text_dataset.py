"""Rows of tokens, by position: documents concatenated and split."""

import numpy as np

from configs.errors import DataError
from data.batch import Rows
from data.catalog import Catalog
from data.documents import Documents
from data.packing import TokenStream
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

    def read(self, start: int, stop: int, pad_to: int) -> Rows:
        """Rows start … stop-1, then blanks: end of document with targets -100."""
        tokens = np.full(pad_to * self._context, self._documents.blank, np.int64)
        targets = np.full(pad_to * self._context, IGNORED, np.int64)
        if start < stop:
            # Rows are contiguous, and each shares one token with the next.
            found = self._read_tokens(start * self._context, self._clip(stop * self._context + 1))
            tokens[: len(found) - 1] = found[:-1]
            targets[: len(found) - 1] = found[1:]
        shape = (pad_to, self._context)
        arrays = {"tokens_BT": tokens.reshape(shape), "targets_BT": targets.reshape(shape)}
        return Rows(arrays, int((targets != IGNORED).sum()))

    def keys(self, start: int, stop: int) -> list[str]:
        """Per row, the documents of its T input tokens: `key[first:last]` token ranges joined by `|`.

        The ranges of successive rows cover the stream once, without gaps or overlaps.
        """
        return [self._row_key(row) for row in range(start, stop)]

    def close(self) -> None:
        """Let go of open files."""
        self.catalog.fetcher.close()

    def _row_key(self, row: int) -> str:
        start = row * self._context
        spans = self._tokens.spans(start, self._clip(start + self._context))
        return "|".join(f"{self.catalog.key(span.sample)}[{span.first}:{span.last}]" for span in spans)

    def _read_tokens(self, start: int, stop: int) -> Ints:
        spans = self._tokens.spans(start, stop)
        return np.concatenate([self._documents.read(span.sample, span.first, span.last) for span in spans])

    def _clip(self, stop: int) -> int:
        return stop if self._end is None else min(stop, self._end)
