"""Bytes of a shard that is none, and what an index would say of them."""

import numpy as np

from data.shards.shard import CHECKED_BYTES, Checksums, Stat, checksum


def contents_of(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def checksums_of(contents: bytes, version: str = '"first"') -> Checksums:
    blocks = [checksum(contents[i : i + CHECKED_BYTES]) for i in range(0, len(contents), CHECKED_BYTES)]
    return Checksums(Stat(len(contents), version), np.array(blocks, np.uint64))
