"""Encoded documents, kept while rows from all over a window are read."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from data.types import Array

Encoded = npt.NDArray[np.int32]


class DocumentCache:
    """`read(sample)` encodes a document unless it is among the last ones read, about `max_tokens` together.

    Each of `lanes` lanes may meet two long neighbours: a document counts as at most its share of that, so that they
    stay whatever their lengths. 4 bytes per token. Threads may share it; two may encode the same document.
    """

    def __init__(self, encode: Callable[[int], Array], max_tokens: int, lanes: int) -> None:
        self._encode = encode
        self._max_tokens = max_tokens
        self._max_cost = max(1, max_tokens // (2 * lanes))
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self._tokens = 0
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
                self._kept[sample] = encoded.astype(np.int32, copy=False)
                self._tokens += self._cost(self._kept[sample])
            while self._tokens > self._max_tokens:
                self._tokens -= self._cost(self._kept.popitem(last=False)[1])

    def _cost(self, ids: Encoded) -> int:
        return min(len(ids), self._max_cost)
