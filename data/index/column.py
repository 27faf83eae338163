"""One number per sample, left where it lies: in the memory-mapped index of its shard."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from data.arrays import Ints, equal_runs
from data.index.shuffle_blocks import ShuffleBlocks

__all__ = ["Column"]


class Column:
    """`column[sample]` of samples numbered through shards; tables[s] has one number per sample of shard s."""

    def __init__(self, tables: Sequence[Ints]) -> None:
        # A view of the base class: numpy's memmap takes a microsecond more per access.
        self.tables = [np.asarray(table) for table in tables]
        self.starts: Ints = np.cumsum([0, *map(len, self.tables)], dtype=np.int64)
        self._starts: list[int] = self.starts.tolist()  # bisect is ten times as fast as searchsorted for one number

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, sample: int) -> int:
        shard = bisect_right(self._starts, sample) - 1
        return int(self.tables[shard].item(sample - self._starts[shard]))

    def take(self, samples: Ints) -> Ints:
        """The numbers of these samples, in their order."""
        order = np.argsort(samples)
        ascending = samples[order]
        found = np.empty(len(samples), np.int64)
        for shard, a, b in shard_runs(self.starts, ascending):
            found[order[a:b]] = self.tables[shard][ascending[a:b] - self._starts[shard]]
        return found

    def block_totals(self, blocks: ShuffleBlocks) -> Ints:
        """The sum over each block."""
        # No block lies across two shards: each table is summed where it is mapped, without a copy.
        bounds = np.searchsorted(blocks.shard, np.arange(len(self.tables) + 1)).tolist()
        sums = [
            np.add.reduceat(table, blocks.first[a:b] - self._starts[shard], dtype=np.int64)
            for shard, (table, a, b) in enumerate(zip(self.tables, bounds, bounds[1:], strict=False))
        ]
        return np.concatenate(sums)

    @cached_property
    def total(self) -> int:
        """The sum over all samples."""
        return sum(int(table.sum()) for table in self.tables)


def shard_runs(starts: Ints, ascending: Ints) -> Iterator[tuple[int, int, int]]:
    """(shard, a, b) where ascending[a:b] are samples of the shard, for each shard that has some."""
    return equal_runs(np.searchsorted(starts, ascending, "right") - 1)
