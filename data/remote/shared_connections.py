"""What the remote shards of one process share: connections, threads, recent pieces, the node's cache."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from configs.sections.data_section import RemoteReads
from data.remote.byte_checks import runs
from data.remote.disk_cache import DiskCache, PieceKey
from data.remote.download import DownloadResources, DownloadSpeed
from data.remote.download_threads import DownloadThreads
from data.remote.range_request import ConnectionPool

MEMORY_BYTES = 128 << 20
# Larger ones are no faster: a request's first byte takes about as long as some 100 KB.
SPAN_PIECES = 8
_MOST_WAITING = 256

Contents = dict[int, bytes]


class MemoryCache:
    """The pieces used last, up to so many bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._pieces: OrderedDict[PieceKey, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, piece: PieceKey) -> bytes | None:
        with self._lock:
            found = self._pieces.get(piece)
            if found is not None:
                self._pieces.move_to_end(piece)
            return found

    def put(self, piece: PieceKey, contents: bytes) -> None:
        with self._lock:
            self._bytes += len(contents) - len(self._pieces.pop(piece, b""))
            self._pieces[piece] = contents
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._pieces.popitem(last=False)[1])


class SharedConnections:
    """One per process and settings."""

    def __init__(self, settings: RemoteReads) -> None:
        self.process = os.getpid()
        hedges = max(1, settings.connections // 2)
        connections = ConnectionPool(settings.connections + hedges)
        self.link = DownloadResources(connections, DownloadSpeed(hedges), settings.timeout_s, settings.tries)
        self.cache = DiskCache(cache_folder(settings, os.environ), settings.cache_bytes)
        self.memory = MemoryCache(MEMORY_BYTES)
        self._pool: DownloadThreads[Contents] = DownloadThreads(settings.connections)
        self._lock = threading.Lock()
        self._coming: dict[PieceKey, Future[Contents]] = {}

    def obtain(
        self, shard: int, pieces: Sequence[int], load: Callable[[int, int], Contents], urgent: bool, span: int
    ) -> dict[int, Future[Contents]]:
        """For each of ascending pieces, what will hold it: under way already, or a new `load(first, count)`."""
        with self._lock:
            coming = {index: future for index in pieces if (future := self._coming.get(PieceKey(shard, index)))}
            for first, count in runs([index for index in pieces if index not in coming], span):
                if not urgent and self._pool.waiting >= _MOST_WAITING:
                    break
                future = self._pool.submit(partial(load, first, count), urgent)
                coming |= dict.fromkeys(range(first, first + count), future)
                self._coming |= {PieceKey(shard, index): future for index in range(first, first + count)}
        for future in set(coming.values()):
            if urgent:
                self._pool.hurry(future)
        return coming

    def arrived(self, shard: int, first: int, count: int) -> None:
        """A load ended, well or not."""
        with self._lock:
            for index in range(first, first + count):
                self._coming.pop(PieceKey(shard, index), None)


def cache_folder(settings: RemoteReads, environment: Mapping[str, str]) -> Path:
    if settings.cache_dir is not None:
        return Path(settings.cache_dir)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stoker" / "shards"


_shared_connections: dict[RemoteReads, SharedConnections] = {}
_lock = threading.Lock()


def shared_connections_for(settings: RemoteReads) -> SharedConnections:
    """This process's engine; made anew in a forked one, where neither threads nor connections can be used."""
    with _lock:
        if settings not in _shared_connections:
            _shared_connections[settings] = SharedConnections(settings)
        return _shared_connections[settings]


def _forget_parent() -> None:
    global _lock
    _lock = threading.Lock()
    _shared_connections.clear()


os.register_at_fork(after_in_child=_forget_parent)
