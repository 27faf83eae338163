"""Names of shards -> a catalog of their samples, indexed where they are not yet."""

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np

from configs.sections.data_section import RemoteReads
from data.arrays import PROGRESS_S, Say, silent
from data.index.catalog import Catalog
from data.index.shard_index import ShardIndex, load_index
from data.index.shard_patterns import expand_patterns, is_url
from data.shards.local_shard import LocalShard
from data.shards.shard import Shard

__all__ = ["open_catalog", "open_shards"]


# Reading and checksums leave Python to other threads; more of them than this only queue for the disk.
_MAX_THREADS = 8
# Shards that are far away are waited for: at each there are answers of a few bytes to come.
_MIN_REMOTE_THREADS = 16
_GOLDEN_RATIO = 0.6180339887  # its multiples, modulo 1, are spread evenly (Knuth 6.4)
_DEFAULT_REMOTE = RemoteReads()


def open_shards(patterns: str | Sequence[str], remote: RemoteReads = _DEFAULT_REMOTE) -> list[Shard]:
    """Shards by name; none is opened yet. DataError: see shard_patterns.expand_patterns."""
    return [_open_shard(name, remote) for name in expand_patterns(patterns)]


def open_catalog(
    patterns: str | Sequence[str],
    remote: RemoteReads = _DEFAULT_REMOTE,
    say: Say = silent,
    verify_reads: bool = True,
) -> Catalog:
    """Find and index the shards; contents that differ from the index are refused when read.

    Without `verify_reads` only a local file's size and time are compared.

    DataError: see shard_patterns.expand_patterns and shard_index.build_index; of several, the first shard's.
    """
    shards = open_shards(patterns, remote)
    indexes = load_indexes(shards, say, remote.connections)
    for shard, index in zip(shards, indexes, strict=True):
        # What came over a network is always compared. A file of other size or time is another shard in any case.
        checked = verify_reads or shard.folder is None
        shard.expect(index.checksums if checked else replace(index.checksums, blocks=np.empty(0, np.uint64)))
    return Catalog(shards, indexes)


def load_indexes(
    shards: Sequence[Shard], say: Say = silent, connections: int = _DEFAULT_REMOTE.connections
) -> list[ShardIndex]:
    """The index of each shard, kept or built, several at a time; of remote ones as many as `connections`, or more.

    Every process starts at a shard of its own, so that several build different ones and then load each other's.
    """
    is_remote = any(shard.folder is None for shard in shards)
    at_once = min(_MAX_THREADS, max(2, len(os.sched_getaffinity(0))))
    threads = min(len(shards), max(_MIN_REMOTE_THREADS, connections) if is_remote else at_once)
    start = int(os.getpid() * _GOLDEN_RATIO % 1 * len(shards))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="index")
    try:
        futures = {i: pool.submit(load_index, shards[i], say) for i in (*range(start, len(shards)), *range(start))}
        in_order = [futures[i] for i in range(len(shards))]
        _report_progress(in_order, shards, say)
        return [future.result() for future in in_order]
    finally:
        # After a failure the shards not begun are left: they may be terabytes.
        pool.shutdown(cancel_futures=True)


def _report_progress(futures: Sequence[Future[ShardIndex]], shards: Sequence[Shard], say: Say) -> None:
    """Until all are done or one has failed."""
    while (state := wait(futures, PROGRESS_S, FIRST_EXCEPTION)).not_done:
        if any(future.exception() for future in state.done):
            return
        waiting = next(i for i, future in enumerate(futures) if not future.done())
        say(f"indexing shards: {len(state.done)} of {len(futures)} done, now {shards[waiting].name}")


def _open_shard(name: str, remote: RemoteReads) -> Shard:
    if not is_url(name):
        return LocalShard(name)
    from data.remote.remote_shard import open_remote  # only where it is needed: it loads the object stores' client

    return open_remote(name, remote)
