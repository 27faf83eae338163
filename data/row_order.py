"""Which rows of the token stream lie at which positions: rows are permuted inside groups of consecutive rows. Pure."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data import draw
from data.types import Ints

ROW_WINDOW_TOKENS = 8 << 20


class RowGroup(NamedTuple):
    """Positions first … stop-1 read rows first … stop-1; group `number` of pass `turn`."""

    turn: int
    number: int
    first: int
    stop: int


class Run(NamedTuple):
    """Successive positions of a group that read successive rows first … stop-1."""

    group: RowGroup
    first: int
    stop: int


class RowOrder:
    """Passes of `pass_rows` rows of `row_tokens` tokens, cut into equal groups of at most about `window_tokens`.

    Rows are permuted inside their group, keyed by pass and group: a batch meets tokens from all over the group, and
    what is read stays inside it. With `key` None rows stay in order. Memory is O(rows of two groups).
    """

    def __init__(self, pass_rows: int, row_tokens: int, window_tokens: int, key: draw.Key | None) -> None:
        self._pass_rows = pass_rows
        self._groups = -(-pass_rows * row_tokens // window_tokens)
        self._key = key
        self._rows = lru_cache(maxsize=2)(self._permuted)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The rows at positions start … stop-1, neighbours together."""
        while start < stop:
            group = self._group(start)
            last = min(stop, group.stop)
            rows = self._rows(group)[start - group.first : last - group.first]
            cuts = np.flatnonzero(rows[1:] - rows[:-1] != 1) + 1
            for a, b in pairwise([0, *cuts.tolist(), len(rows)]):
                yield Run(group, int(rows[a]), int(rows[b - 1]) + 1)
            start = last

    def _group(self, position: int) -> RowGroup:
        turn, row = divmod(position, self._pass_rows)
        # The last group that starts at or before the row, where number i starts at row i·rows // groups.
        number = ((row + 1) * self._groups - 1) // self._pass_rows
        first, stop = (turn * self._pass_rows + i * self._pass_rows // self._groups for i in (number, number + 1))
        return RowGroup(turn, number, first, stop)

    def _permuted(self, group: RowGroup) -> Ints:
        count = group.stop - group.first
        if self._key is None:
            return np.arange(group.first, group.stop)
        return group.first + draw.permutation(count, ("rows", *self._key, group.turn, group.number))
