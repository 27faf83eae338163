"""A shard in an object store or on a web server."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from configs.errors import DataError
from configs.sections.data_section import RemoteReads
from data.remote import byte_checks
from data.remote.address import Address, parse_address
from data.remote.byte_checks import PIECE_BYTES
from data.remote.disk_cache import DiskCache, PieceKey
from data.remote.http_answers import NotFoundError, Range
from data.remote.retried_download import Download
from data.remote.shared_connections import SPAN_PIECES, Pieces, SharedConnections, shared_connections_for
from data.remote.signed_url import requests_for
from data.shards.shard import Checksums, Stat

__all__ = ["open_remote"]


def open_remote(url: str, settings: RemoteReads) -> "RemoteShard":
    """The shard at an s3://, gs://, az://, http:// or https:// URL; nothing is asked for yet.

    DataError: the URL or the credentials cannot be used.
    """
    return RemoteShard(parse_address(url), settings)


class PieceRange(NamedTuple):
    """Bytes start … stop-1 of a piece, which lie at `at` of what is read."""

    piece: int
    start: int
    stop: int
    at: int


def piece_ranges(offset: int, size: int) -> list[PieceRange]:
    """The pieces that hold `size` bytes from `offset` on. Pure."""
    found = []
    at = 0
    while at < size:
        piece, start = divmod(offset + at, PIECE_BYTES)
        stop = min(PIECE_BYTES, start + size - at)
        found.append(PieceRange(piece, start, stop, at))
        at += stop - start
    return found


class RemoteShard:
    """A data.shards.shard.Shard. Bytes come in pieces of PIECE_BYTES through the node's cache."""

    def __init__(self, address: Address, settings: RemoteReads) -> None:
        self._address = address
        self._settings = settings
        self._request = requests_for(address, os.environ)
        self._known_stat: Stat | None = None
        self._contents_hash = 0
        # The pieces that were compared with the checksums; replaced as one.
        self._verified: tuple[Checksums | None, set[int]] = (None, set())
        self._last_shared: SharedConnections | None = None

    @property
    def name(self) -> str:
        """The URL as the user wrote it, its query hidden."""
        return self._address.name

    @property
    def identity(self) -> str:
        """The URL without what grants access, so that it stays when a signature changes."""
        return self._address.identity

    @property
    def folder(self) -> Path | None:
        """None: files derived from the shard are kept in the user's cache."""
        return None

    def stat(self) -> Stat:
        """Asks the server for two bytes. NotFoundError: no such object; DataError: refused, or given up."""
        # URLs signed for GET refuse HEAD; to some servers (s3rver) a range that ends at byte 0 has no end.
        _, stat = Download(self._shared.resources, self.name, self._request, Range(0, 2)).run()
        if self._known_stat is None:
            self._set_stat(stat)
        return stat

    def expect(self, checksums: Checksums) -> None:
        """From now on each piece is compared with these checksums before it is used."""
        self._set_stat(checksums.stat)
        self._verified = (checksums, set())

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. DataError: see `view`."""
        return bytes(self.view(offset, size))

    def view(self, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes: from memory, else the node's cache, else downloaded.

        DataError: outside of the shard, refused, or given up. DamagedDataError: the bytes are not those expected.
        """
        self._refuse_outside(offset, size)
        into, missing = memoryview(bytearray(size)), []
        for wanted in piece_ranges(offset, size):
            found = self._read_kept_range(wanted)
            if found is None:
                missing.append(wanted)
            else:
                into[wanted.at : wanted.at + len(found)] = found
        pending = self._request_pieces([wanted.piece for wanted in missing])
        for piece, start, stop, at in missing:
            into[at : at + stop - start] = memoryview(self._wait_for_piece(piece, pending[piece]))[start:stop]
        return into.toreadonly()

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """A hint: these (offset, size) are read soon. Neighbours come in one request; returns at once."""
        wanted = sorted({wanted.piece for offset, size in ranges for wanted in piece_ranges(offset, size)})
        shard, shared = self._contents(), self._shared
        cache = self._cache
        pieces = (PieceKey(shard, index) for index in wanted)
        missing = [p.number for p in pieces if shared.memory.get(p) is None and not (cache and cache.holds(p))]
        self._request_pieces(missing, urgent=False)

    def stream(self) -> Iterator[bytes]:
        """The whole shard in pieces, downloaded by all connections at once; memory does not keep them."""
        count = -(-self._stat().size // PIECE_BYTES)
        # A small shard too is read through all connections.
        span = min(SPAN_PIECES, max(1, -(-count // self._settings.connections)))
        ahead: deque[dict[int, Future[Pieces]]] = deque()
        for first in range(0, count, span):
            ahead.append(self._request_pieces(range(first, min(first + span, count)), keep=False))
            if len(ahead) > self._settings.connections:
                yield from self._in_order(ahead.popleft())
        while ahead:
            yield from self._in_order(ahead.popleft())

    def beside(self, suffix: str) -> bytes | None:
        """The object named like the shard plus `suffix`; None: there is none, or we may not know of it."""
        # A store says 403 for what is absent to those who may not list it.
        other = RemoteShard(self._address.beside(suffix), self._settings)
        try:
            other.stat()
        except NotFoundError:
            return None
        return b"".join(other.stream())

    def close(self) -> None:
        """Nothing: connections and pieces are shared by the shards of the process."""

    @property
    def _shared(self) -> SharedConnections:
        if self._last_shared is None or self._last_shared.process != os.getpid():
            self._last_shared = shared_connections_for(self._settings)
        return self._last_shared

    @property
    def _cache(self) -> DiskCache | None:
        """None for a server that gives no version: old contents could be taken for new ones."""
        return self._shared.cache if self._stat().version else None

    def _set_stat(self, stat: Stat) -> None:
        self._contents_hash = xxhash.xxh3_128_intdigest(repr((self.identity, stat.version, stat.size)).encode())
        self._known_stat = stat

    def _stat(self) -> Stat:
        return self._known_stat or self.stat()

    def _contents(self) -> int:
        """The hash of what the shard held when it was first looked at."""
        self._stat()
        return self._contents_hash

    def _refuse_outside(self, offset: int, size: int) -> None:
        known = self._stat()
        if offset < 0 or offset + size > known.size:
            raise DataError(
                f"{self.name}: bytes {offset}-{offset + size - 1} are wanted, it has {known.size}: index it anew with "
                "`stoker data index`"
            )

    def _read_kept_range(self, wanted: PieceRange) -> memoryview | bytes | None:
        expected, checked = self._verified
        # Cached before the checksums were known, perhaps: a piece is compared once as a whole, then read by range.
        if expected is not None and wanted.piece not in checked:
            whole = self._read_kept(wanted.piece)
            if whole is None:
                return None
            self._shared.memory.put(PieceKey(self._contents(), wanted.piece), whole)
            return memoryview(whole)[wanted.start : wanted.stop]
        piece = PieceKey(self._contents(), wanted.piece)
        whole = self._shared.memory.get(piece)
        if whole is not None:
            return memoryview(whole)[wanted.start : wanted.stop]
        if self._cache is None:
            return None
        return self._cache.read(piece, self._piece_bytes(wanted.piece), wanted.start, wanted.stop)

    def _piece_bytes(self, index: int) -> int:
        return min(PIECE_BYTES, self._stat().size - index * PIECE_BYTES)

    def _is_intact(self, index: int, contents: bytes) -> bool:
        """Whether a piece, which another may have loaded, is as expected; compared once."""
        expected, checked = self._verified
        if expected is None or index in checked:
            return True
        if byte_checks.matches_checksums(expected)(index, memoryview(contents)):
            checked.add(index)
            return True
        return False

    def _read_kept(self, index: int) -> bytes | None:
        """A piece from memory or from the cache, if it is there and intact."""
        piece, size = PieceKey(self._contents(), index), self._piece_bytes(index)
        contents = self._shared.memory.get(piece)
        if contents is not None and self._is_intact(index, contents):
            return contents
        contents = self._cache.read(piece, size, 0, size) if self._cache else None
        if contents is None or self._is_intact(index, contents):
            return contents
        if self._cache:
            self._cache.discard(piece)
        return None

    def _request_pieces(
        self, pieces: Sequence[int], urgent: bool = True, keep: bool = True
    ) -> dict[int, Future[Pieces]]:
        if not pieces:
            return {}
        load = partial(self._load, keep=keep)
        return self._shared.obtain(self._contents(), pieces, load, urgent, SPAN_PIECES)

    def _in_order(self, pending: dict[int, Future[Pieces]]) -> Iterator[bytes]:
        for index in sorted(pending):
            yield self._wait_for_piece(index, pending[index])

    def _wait_for_piece(self, index: int, pending: Future[Pieces]) -> bytes:
        contents = pending.result()[index]
        # It may have been asked for before the checksums were known, or by another shard object.
        return contents if self._is_intact(index, contents) else self._load(index, 1, keep=True)[index]

    def _load(self, first: int, count: int, keep: bool) -> Pieces:
        shared, shard, cache = self._shared, self._contents(), self._cache
        try:
            claim = cache.claim(PieceKey(shard, first), count, self._settings.timeout_s) if cache else nullcontext()
            # Ranks of a node want the same pieces: the one that has the lock downloads, the others find them cached.
            with claim:
                loaded = {i: found for i in range(first, first + count) if (found := self._read_kept(i)) is not None}
                fetched = self._fetch([i for i in range(first, first + count) if i not in loaded])
                for index, contents in fetched.items():
                    if cache:
                        cache.write(PieceKey(shard, index), memoryview(contents))
            loaded |= fetched
            if keep:
                for index, contents in loaded.items():
                    shared.memory.put(PieceKey(shard, index), contents)
            return loaded
        finally:
            # After a failure too, or whoever asks next would wait for this load again.
            shared.arrived(shard, first, count)

    def _fetch(self, pieces: Sequence[int]) -> Pieces:
        expected, checked = self._verified
        tries = self._settings.tries
        if expected is not None:
            found = byte_checks.fetch_verified(
                self.name, pieces, self._download, byte_checks.matches_checksums(expected), tries
            )
            checked.update(found)
            return found
        # There are no checksums while the shard is being indexed.
        if self._request().protected:
            return byte_checks.fetch_verified(self.name, pieces, self._download, byte_checks.accept_all, 1)
        return byte_checks.fetch_verified(self.name, pieces, self._download, byte_checks.arrived_twice(), tries + 1)

    def _download(self, first: int, count: int) -> memoryview:
        stat = self._stat()
        asked = Range(first * PIECE_BYTES, min((first + count) * PIECE_BYTES, stat.size), stat)
        contents, _ = Download(self._shared.resources, self.name, self._request, asked).run()
        return memoryview(contents)
