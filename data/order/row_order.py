"""Which rows of the token stream are which items: rows are permuted inside groups of consecutive rows. Pure."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data import draws
from data.arrays import Ints
from data.order.lanes import lane_starts

__all__ = ["ROW_WINDOW_TOKENS", "VERSION", "RowGroup", "RowOrder"]


ROW_WINDOW_TOKENS = 8 << 20
VERSION = 2  # of the order of rows, which is part of a data set's fingerprint


class RowGroup(NamedTuple):
    """Rows first … stop-1 of pass `pass_number`."""

    pass_number: int
    number: int  # within the pass
    first: int
    stop: int


class RowOrder:
    """Passes of `pass_rows` rows of `row_tokens` tokens; each lane is cut into equal groups.

    Lanes are read side by side, so their current groups together have about `window_tokens`. Rows are permuted inside
    their group, keyed by pass and group: a batch meets tokens from all over the groups, and what is read stays inside
    them. With `key` None rows stay in order. Memory is O(rows of two groups per lane).
    """

    def __init__(self, pass_rows: int, row_tokens: int, window_tokens: int, key: draws.Key | None, lanes: int) -> None:
        self._pass_rows = pass_rows
        self._lanes = lanes
        self._lane_starts = lane_starts(pass_rows, lanes)
        # Of a lane; all lanes together then have a window's tokens in their current groups.
        self._lane_groups = -(-pass_rows * row_tokens // window_tokens)
        self._key = key
        self._group = lru_cache(maxsize=2 * lanes)(self._group_of)
        self._rows = lru_cache(maxsize=2 * lanes)(self._permuted)

    def rows(self, items: Ints) -> Iterator[tuple[RowGroup, int]]:
        """The group of each item, and its row within the pass."""
        passes, positions = np.divmod(items, self._pass_rows)
        indexes, lanes = np.divmod(positions, self._lanes)
        sizes = self._lane_starts[lanes + 1] - self._lane_starts[lanes]
        # The last group that starts at or before the row, where number i starts at row i·size // groups.
        numbers = ((indexes + 1) * self._lane_groups - 1) // sizes
        offsets = indexes - numbers * sizes // self._lane_groups
        numbers += lanes * self._lane_groups
        for pass_number, number, offset in zip(passes.tolist(), numbers.tolist(), offsets.tolist(), strict=True):
            group = self._group(pass_number, number)
            yield group, self._rows(group)[offset]

    def _group_of(self, pass_number: int, number: int) -> RowGroup:
        lane, within = divmod(number, self._lane_groups)
        start, stop = self._lane_starts[lane : lane + 2].tolist()
        # Groups of a lane differ by one row at most: a small last group would be read alone, and mix with nothing.
        first, last = (start + i * (stop - start) // self._lane_groups for i in (within, within + 1))
        return RowGroup(pass_number, number, first, last)

    def _permuted(self, group: RowGroup) -> "memoryview[int]":
        rows = np.arange(group.first, group.stop)
        if self._key is not None:
            rows = rows[draws.permutation(len(rows), ("rows", *self._key, group.pass_number, group.number))]
        # One number is looked up several times as fast in a memoryview as in an array.
        return rows.data
