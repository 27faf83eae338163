"""Encoded documents, kept while rows from all over a window are read."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from data.arrays import Array

Encoded = npt.NDArray[np.int32]  # half the memory of int64; vocabularies are far smaller


class DocumentCache:
    """`read(sample)` encodes a document unless it is among the last ones read, about `max_tokens` together.

    Each of `lanes` lanes may meet two long neighbours, which need not fit. A document that comes again soon after it
    was dropped is in use: there is room for as much more from then on, so that it is encoded twice, not for each row.
    A document counts as at most its share of `max_tokens`, which bounds that. 4 bytes per token. Threads may share it;
    two may encode the same document.
    """

    def __init__(self, encode: Callable[[int], Array], max_tokens: int, lanes: int) -> None:
        self._encode = encode
        self._max_shares = max_tokens
        self._max_share = max(1, max_tokens // (2 * lanes))
        self._max_tokens = max_tokens
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self._dropped: OrderedDict[int, None] = OrderedDict()  # the last ones, as many as may be in use
        self._max_dropped = 2 * lanes
        self._tokens = self._shares = 0
        self._lock = threading.Lock()

    def read(self, sample: int) -> Encoded:
        """All tokens of the document."""
        with self._lock:
            found = self._kept.get(sample)
            if found is not None:
                self._kept.move_to_end(sample)
                return found
        encoded = self._encode(sample).astype(np.int32)
        self.keep(sample, encoded)
        return encoded

    def missing(self, samples: Iterable[int]) -> list[int]:
        """Those that `read` would encode, once each."""
        with self._lock:
            return [sample for sample in dict.fromkeys(samples) if sample not in self._kept]

    def keep(self, sample: int, encoded: Array) -> None:
        """What `read` gives from now on, for a while."""
        with self._lock:
            if sample not in self._kept:
                self._kept[sample] = ids = encoded.astype(np.int32, copy=False)
                self._tokens += len(ids)
                self._shares += min(len(ids), self._max_share)
                # Needed again so soon, it should not have been dropped.
                if sample in self._dropped:
                    del self._dropped[sample]
                    self._max_tokens += len(ids)
            while len(self._kept) > 1 and (self._tokens > self._max_tokens or self._shares > self._max_shares):
                self._drop()

    def _drop(self) -> None:
        sample, ids = self._kept.popitem(last=False)
        self._tokens -= len(ids)
        self._shares -= min(len(ids), self._max_share)
        self._dropped[sample] = None
        if len(self._dropped) > self._max_dropped:
            self._dropped.popitem(last=False)
