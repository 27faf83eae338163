"""Encoded documents, kept while rows from all over a group of rows are read."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from data.types import Ints

Encoded = npt.NDArray[np.int32]


class DocumentCache:
    """`read(sample)` encodes a document unless it is among the last ones read, about `max_tokens` together.

    A document counts as at most half of that, so that two neighbours of any length stay: 4 bytes per token.
    """

    def __init__(self, encode: Callable[[int], Ints], max_tokens: int) -> None:
        self._encode = encode
        self._max_tokens = max_tokens
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self._tokens = 0

    def read(self, sample: int) -> Encoded:
        """All tokens of the document."""
        found = self._kept.get(sample)
        if found is None:
            found = self._kept[sample] = self._encode(sample).astype(np.int32)
            self._tokens += self._cost(found)
            while self._tokens > self._max_tokens:
                self._tokens -= self._cost(self._kept.popitem(last=False)[1])
        else:
            self._kept.move_to_end(sample)
        return found

    def _cost(self, ids: Encoded) -> int:
        return min(len(ids), self._max_tokens // 2)
