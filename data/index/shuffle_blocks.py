"""Blocks: runs of neighbouring samples of one shard, the unit that shuffling moves. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from data.arrays import Ints, ranges_of

__all__ = ["Int32s", "ShuffleBlocks"]


GROUP_SAMPLES = 64  # an index sums bytes over this many samples
MAX_BLOCKS = 1 << 21
_SAMPLES_AT_ONCE = 1 << 22
Int32s = npt.NDArray[np.int32]  # of blocks there are fewer than 2**31


@dataclass(frozen=True)
class ShuffleBlocks:
    """Runs of consecutive samples, none across two shards.

    Block b is samples first[b] … first[b] + samples[b] - 1, of bytes[b] bytes together, of shard shard[b].
    """

    first: Ints
    samples: Ints
    bytes: Ints
    shard: Int32s

    @property
    def count(self) -> int:
        """Samples in all blocks."""
        return int(self.first[-1] + self.samples[-1])


def block_samples(shard_samples: Ints) -> int:
    """GROUP_SAMPLES, doubled until there are at most MAX_BLOCKS blocks, or one block per shard."""
    size = GROUP_SAMPLES
    while (-(-shard_samples // size)).sum() > MAX_BLOCKS and size < shard_samples.max():
        size *= 2
    return size


def split_into_blocks(shard_samples: Ints, group_bytes: Iterable[Ints]) -> ShuffleBlocks:
    """Cut shards of these many samples (each at least one) into blocks of at most `block_samples`.

    `group_bytes` has, for each shard, the bytes of every GROUP_SAMPLES samples.
    """
    size = block_samples(shard_samples)
    per_shard = -(-shard_samples // size)
    first = ranges_of(np.cumsum(shard_samples) - shard_samples, per_shard, size)
    samples = np.diff(first, append=shard_samples.sum())
    totals = np.empty(len(first), np.int64)
    at = 0
    # Many small shards in one call of numpy; not all, for their groups are then in memory together.
    groups, shards_at_once = iter(group_bytes), 1 + _SAMPLES_AT_ONCE // int(shard_samples.max())
    group_counts, done = -(-shard_samples // GROUP_SAMPLES), 0
    while shards := list(islice(groups, shards_at_once)):
        sums = _sums(shards, group_counts[done : done + len(shards)], size // GROUP_SAMPLES)
        totals[at : at + len(sums)] = sums
        at, done = at + len(sums), done + len(shards)
    return ShuffleBlocks(first, samples, totals, np.repeat(np.arange(len(per_shard), dtype=np.int32), per_shard))


def _sums(shards: list[Ints], counts: Ints, length: int) -> Ints:
    """The sum of every `length` numbers, starting anew at each shard, which has `counts` of them."""
    starts = ranges_of(np.cumsum(counts) - counts, -(-counts // length), length)
    return np.add.reduceat(np.concatenate(shards), starts)
