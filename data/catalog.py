"""All shards of a split as one table of samples, numbered from 0 in shard order."""

import hashlib
import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.fetch import Fetcher
from data.order import Blocks, cut_blocks
from data.shards import expand
from data.tar_index import ShardIndex, load_index
from data.types import Ints, Say

PROGRESS_S = 2.0


class Part:
    """One part of every sample: `sizes[sample]` bytes, -1 where the sample lacks it."""

    def __init__(self, name: str, offsets: Ints, sizes: Ints) -> None:
        self.name = name
        self.offsets = offsets
        self.sizes = sizes


class Catalog:
    """Samples of several shards; knows where each lies and reads its parts."""

    def __init__(self, shards: Sequence[Path], indexes: Sequence[ShardIndex]) -> None:
        self.shards = list(shards)
        self.indexes = list(indexes)
        self.starts: Ints = np.cumsum([0, *(index.count for index in indexes)], dtype=np.int64)
        self._starts: list[int] = self.starts.tolist()  # bisect is ten times as fast as searchsorted for one number
        self.count = self._starts[-1]
        self.fetcher = Fetcher(self.shards, self.indexes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over shard names, sizes, keys and the layout of parts; the same wherever the shards lie."""
        digest = hashlib.sha256()
        for path, index in zip(self.shards, self.indexes, strict=True):
            head = f"{path.name}\0{index.shard_bytes}\0{index.count}\0{','.join(index.part_names)}\0"
            digest.update(head.encode())
            for array in (index.key_offsets, index.key_blob, index.part_offsets, index.part_sizes):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def blocks(self) -> Blocks:
        """The units in which the samples are shuffled."""
        sizes = [np.maximum(index.part_sizes, 0).sum(axis=0) for index in self.indexes]
        return cut_blocks([index.count for index in self.indexes], np.concatenate(sizes))

    def part(self, name: str) -> Part:
        """The part of this name of every sample."""
        tables = [_part_of(index, name) for index in self.indexes]
        return Part(name, np.concatenate([t[0] for t in tables]), np.concatenate([t[1] for t in tables]))

    def required_part(self, name: str) -> Part:
        """As `part`; DataError when a sample lacks it."""
        part = self.part(name)
        self.refuse_missing(part.sizes < 0, name)
        return part

    def refuse_missing(self, missing: npt.NDArray[np.bool_], expected: str) -> None:
        """DataError naming the first sample marked in `missing`, the parts it has and the part expected."""
        if missing.any():
            sample = int(np.argmax(missing))
            shard, row = self.place(sample)
            index = self.indexes[shard]
            parts = zip(index.part_names, index.part_sizes[:, row], strict=True)
            have = ", ".join(name for name, size in parts if size >= 0)
            raise DataError(
                f"{self.where(sample)} has parts {have}, but the recipe needs {expected} "
                f"({int(missing.sum())} of {self.count} samples lack it): correct data.kind or data.part, or the shards"
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
        return f"{self.shards[self.place(sample)[0]]}: sample {self.key(sample)}"

    def read(self, part: Part, sample: int, first: int = 0, last: int | None = None) -> bytes:
        """Bytes first … last-1 of a part (all of it by default)."""
        size = int(part.sizes[sample]) if last is None else last
        shard = bisect_right(self._starts, sample) - 1
        return self.fetcher.read(shard, int(part.offsets[sample]) + first, size - first)


def open_catalog(patterns: str | Sequence[str], say: Say) -> Catalog:
    """Find and index the shards. DataError: see data.shards.expand and data.tar_index.build_index."""
    shards = expand(patterns)
    indexes = []
    said = time.monotonic()
    for number, shard in enumerate(shards):
        if time.monotonic() - said > PROGRESS_S:
            say(f"indexing shard {number + 1} of {len(shards)}: {shard}")
            said = time.monotonic()
        indexes.append(load_index(shard, say))
    return Catalog(shards, indexes)


def _part_of(index: ShardIndex, name: str) -> tuple[Ints, Ints]:
    if name not in index.part_names:
        absent = np.full(index.count, -1, np.int64)
        return absent, absent
    row = index.part_names.index(name)
    return index.part_offsets[row], index.part_sizes[row]
