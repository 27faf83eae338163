"""What the remote shards of one process share: connections, threads, recent pieces, the node's cache."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from configs.sections.data_section import RemoteReads
from data.remote.byte_checks import neighbours
from data.remote.disk_cache import DiskCache, PieceKey
from data.remote.download_threads import DownloadThreads
from data.remote.range_request import ConnectionPool
from data.remote.retried_download import DownloadResources, DownloadSpeed

MEMORY_BYTES = 128 << 20
# Larger ones are no faster: a request's first byte takes about as long as some 100 KB.
SPAN_PIECES = 8
_MOST_WAITING = 256

Pieces = dict[int, bytes]


class MemoryCache:
    """The pieces used last, up to so many bytes. Threads may share it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._pieces: OrderedDict[PieceKey, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, piece: PieceKey) -> bytes | None:
        """The piece, which is then the one used last; None: not in memory."""
        with self._lock:
            found = self._pieces.get(piece)
            if found is not None:
                self._pieces.move_to_end(piece)
            return found

    def put(self, piece: PieceKey, contents: bytes) -> None:
        """Keep a piece; those unused for longest are dropped while there are more than `limit_bytes`."""
        with self._lock:
            self._bytes += len(contents) - len(self._pieces.pop(piece, b""))
            self._pieces[piece] = contents
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._pieces.popitem(last=False)[1])


class SharedConnections:
    """Connections, download threads, memory and disk cache: one per process and settings."""

    def __init__(self, settings: RemoteReads) -> None:
        self.process = os.getpid()
        # Ranges that are asked for twice hold a second connection each.
        hedges = max(1, settings.connections // 2)
        connections = ConnectionPool(settings.connections + hedges)
        self.resources = DownloadResources(connections, DownloadSpeed(hedges), settings.timeout_s, settings.tries)
        self.cache = DiskCache(cache_folder(settings, os.environ), settings.cache_bytes)
        self.memory = MemoryCache(MEMORY_BYTES)
        self._threads: DownloadThreads[Pieces] = DownloadThreads(settings.connections)
        self._lock = threading.Lock()
        self._pending: dict[PieceKey, Future[Pieces]] = {}

    def obtain(
        self, shard: int, pieces: Sequence[int], load: Callable[[int, int], Pieces], urgent: bool, span: int
    ) -> dict[int, Future[Pieces]]:
        """For each of ascending pieces, what will hold it: under way already, or a new `load(first, count)`."""
        with self._lock:
            pending = {index: future for index in pieces if (future := self._pending.get(PieceKey(shard, index)))}
            for first, count in neighbours([index for index in pieces if index not in pending], span):
                if not urgent and self._threads.waiting >= _MOST_WAITING:
                    break
                future = self._threads.submit(partial(load, first, count), urgent)
                pending |= dict.fromkeys(range(first, first + count), future)
                self._pending |= {PieceKey(shard, index): future for index in range(first, first + count)}
        # Outside the lock, which load's own end takes.
        for future in set(pending.values()):
            if urgent:
                self._threads.make_urgent(future)
        return pending

    def arrived(self, shard: int, first: int, count: int) -> None:
        """A load ended, well or not."""
        with self._lock:
            for index in range(first, first + count):
                self._pending.pop(PieceKey(shard, index), None)


def cache_folder(settings: RemoteReads, environment: Mapping[str, str]) -> Path:
    """data.remote.cache_dir, or stoker/shards in XDG_CACHE_HOME (~/.cache)."""
    if settings.cache_dir is not None:
        return Path(settings.cache_dir)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stoker" / "shards"


_shared_connections: dict[RemoteReads, SharedConnections] = {}
_lock = threading.Lock()


def shared_connections_for(settings: RemoteReads) -> SharedConnections:
    """Those of this process; made anew in a forked one, where neither threads nor connections can be used."""
    with _lock:
        if settings not in _shared_connections:
            _shared_connections[settings] = SharedConnections(settings)
        return _shared_connections[settings]


def _forget_parent() -> None:
    # The parent's lock may be held by a thread that the fork did not copy.
    global _lock
    _lock = threading.Lock()
    _shared_connections.clear()


os.register_at_fork(after_in_child=_forget_parent)
