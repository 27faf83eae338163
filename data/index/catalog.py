"""All shards of a split as one table of samples, numbered from 0 in shard order."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from configs.errors import DamagedDataError, DataError
from data.arrays import Ints
from data.index.column import Column, shard_runs
from data.index.shard_index import ShardIndex
from data.index.shuffle_blocks import ShuffleBlocks, split_into_blocks
from data.shards.shard import Shard

__all__ = ["Catalog", "Part"]


class Part:
    """One part of every sample: `sizes[sample]` bytes, -1 where the sample lacks it."""

    def __init__(self, name: str, offsets: Column, sizes: Column) -> None:
        self.name = name
        self.offsets = offsets
        self.sizes = sizes


class Catalog:
    """Samples of several shards; knows where each lies and reads its parts. Threads may share it."""

    def __init__(self, shards: Sequence[Shard], indexes: Sequence[ShardIndex]) -> None:
        self.shards = list(shards)
        self.indexes = list(indexes)
        self.starts: Ints = np.cumsum([0, *(index.count for index in indexes)], dtype=np.int64)
        self._starts: list[int] = self.starts.tolist()  # bisect is ten times as fast as searchsorted for one number
        self.count = self._starts[-1]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the shards' base names and what their indexes hold; the same wherever the shards lie."""
        digest = hashlib.sha256()
        for shard, index in zip(self.shards, self.indexes, strict=True):
            digest.update(f"{_base_name(shard)}\0{index.digest}\0".encode())
        return digest.hexdigest()

    def blocks(self) -> ShuffleBlocks:
        """The units in which the samples are shuffled."""
        return split_into_blocks(np.diff(self.starts), (index.group_bytes for index in self.indexes))

    def part(self, name: str) -> Part:
        """The part of this name of every sample."""
        rows = [index.part_names.index(name) if name in index.part_names else None for index in self.indexes]
        pairs = list(zip(self.indexes, rows, strict=True))
        return Part(
            name,
            Column([_absent(index) if row is None else index.part_offsets[row] for index, row in pairs]),
            Column([_absent(index) if row is None else index.part_sizes[row] for index, row in pairs]),
        )

    def required_part(self, name: str) -> Part:
        """As `part`; DataError when a sample lacks it."""
        self.require_one_of([name], name)
        return self.part(name)

    def require_one_of(self, names: Sequence[str], expected: str) -> None:
        """DataError naming the first sample that has none of these parts, the parts it has and what is expected."""
        missing = 0
        first: int | None = None
        for start, index in zip(self._starts, self.indexes, strict=False):
            lacking = _lacking(index, names)
            missing += len(lacking)
            if len(lacking) and first is None:
                first = start + int(lacking[0])
        if first is not None:
            shard, row = self.place(first)
            index = self.indexes[shard]
            parts = zip(index.part_names, index.part_sizes[:, row], strict=True)
            have = ", ".join(name for name, size in parts if size >= 0)
            raise DataError(
                f"{self.where(first)} has parts {have}, but the recipe needs {expected} "
                f"({missing} of {self.count} samples lack it): correct data.kind or data.part, or the shards"
            )

    def place(self, sample: int) -> tuple[int, int]:
        """(shard number, sample number within the shard)."""
        shard = bisect_right(self._starts, sample) - 1
        return shard, sample - self._starts[shard]

    def key(self, sample: int) -> str:
        """The sample's WebDataset key."""
        shard, row = self.place(sample)
        return self.indexes[shard].key(row)

    def where(self, sample: int) -> str:
        """`shard: sample key`, the start of every message about a sample."""
        return f"{self.shards[self.place(sample)[0]].name}: sample {self.key(sample)}"

    def cause(self, sample: int, error: DataError) -> str:
        """The message of an error about the sample, without shard and key."""
        return str(error).removeprefix(f"{self.where(sample)}: ")

    def read(self, part: Part, sample: int, first: int = 0, last: int | None = None) -> bytes:
        """Bytes first … last-1 of a part (all of it by default). DataError names shard and sample."""
        shard = bisect_right(self._starts, sample) - 1
        row = sample - self._starts[shard]
        size = part.sizes.tables[shard].item(row) if last is None else last
        try:
            return self.shards[shard].read(part.offsets.tables[shard].item(row) + first, size - first)
        except DataError as error:
            raise self._naming(sample, error) from error

    def view(self, part: Part, sample: int) -> memoryview:
        """The whole of a part where it lies; see Shard.view. DataError names shard and sample."""
        shard = bisect_right(self._starts, sample) - 1
        row = sample - self._starts[shard]
        try:
            return self.shards[shard].view(part.offsets.tables[shard].item(row), part.sizes.tables[shard].item(row))
        except DataError as error:
            raise self._naming(sample, error) from error

    def prefetch(self, samples: Ints) -> None:
        """A hint that these samples are read soon, to shards that are not local files; returns at once."""
        ascending = np.unique(samples)
        for shard, a, b in shard_runs(self.starts, ascending):
            if self.shards[shard].folder is None:
                index, rows = self.indexes[shard], ascending[a:b] - self._starts[shard]
                # The parts of a sample are neighbours: one range holds them all.
                offsets, sizes = index.part_offsets[:, rows], index.part_sizes[:, rows]
                first = np.where(offsets < 0, np.iinfo(np.int64).max, offsets).min(axis=0)
                last = (offsets + sizes).max(axis=0)
                self.shards[shard].prefetch(list(zip(first.tolist(), (last - first).tolist(), strict=True)))

    @cached_property
    def has_remote(self) -> bool:
        """Whether hints are of use."""
        return any(shard.folder is None for shard in self.shards)

    def close(self) -> None:
        """Let go of open files and connections."""
        for shard in self.shards:
            shard.close()

    def _naming(self, sample: int, error: DataError) -> DataError:
        # The message begins with the shard's name already, and `where` gives it again.
        name = self.shards[self.place(sample)[0]].name
        kind = DamagedDataError if isinstance(error, DamagedDataError) else DataError
        return kind(f"{self.where(sample)}: {str(error).removeprefix(f'{name}: ')}")


def _absent(index: ShardIndex) -> Ints:
    """-1 for every sample, in the memory of one."""
    return np.broadcast_to(np.int64(-1), index.count)


def _lacking(index: ShardIndex, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """The samples of a shard that have none of these parts; the tables are read only where the counts leave it open."""
    rows = [row for row, name in enumerate(index.part_names) if name in names]
    if any(int(index.part_counts[row]) == index.count for row in rows):
        return np.empty(0, np.intp)
    return np.flatnonzero((index.part_sizes[rows] < 0).all(axis=0))


def _base_name(shard: Shard) -> str:
    # A data set that was moved is the same data set, and a run of it goes on.
    return shard.identity.partition("?")[0].rpartition("/")[2]
