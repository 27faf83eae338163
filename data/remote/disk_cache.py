"""Pieces of shards on the node's disk, shared by its processes."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data.remote import file_locks, piece_file
from data.remote.cache_limit import CacheLimit

# Modification times say what was used last. To set one is a write to the disk, so not every read does.
_TOUCHED_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class PieceKey(NamedTuple):
    """Which piece: `number` of the contents with hash `shard` (128 bits)."""

    shard: int
    number: int

    @property
    def file_name(self) -> str:
        """Hexadecimal, in the cache folder."""
        return f"{self.shard:032x}-{self.number:x}"

    @property
    def lock_number(self) -> int:
        """Neighbours have neighbouring numbers; 0 is another lock's."""
        # Numbers end below 2**63. Two shards with the same upper bits only wait for each other.
        return 1 + (self.shard >> 66) + self.number

    @property
    def seed(self) -> int:
        """Of the file's checksums: a piece under the name of another does not agree with them."""
        return (self.shard + self.number) & (2**64 - 1)


class DiskCache:
    """A folder of piece files. Without it everything is downloaded: a failing disk costs time, never a run."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = CacheLimit(folder, limit_bytes)
        self._writable = True

    def read(self, piece: PieceKey, payload_bytes: int, start: int, stop: int) -> bytes | None:
        """Bytes start … stop-1 of a piece, verified; None: not there, or damaged and now removed."""
        path = f"{self._folder}/{piece.file_name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._stop_writing(error)
            return None
        try:
            found = piece_file.read(descriptor, piece.seed, payload_bytes, start, stop)
            if found is None:
                self.discard(piece)
            elif time.time() - os.fstat(descriptor).st_mtime > _TOUCHED_EVERY_S:
                os.utime(descriptor)
            return found
        except OSError as error:
            self._stop_writing(error)
            return None
        finally:
            os.close(descriptor)

    def holds(self, piece: PieceKey) -> bool:
        """Whether there is a file; it may be damaged."""
        return (self._folder / piece.file_name).exists()

    def discard(self, piece: PieceKey) -> None:
        """Remove a piece that is not what it should be."""
        try:
            (self._folder / piece.file_name).unlink(missing_ok=True)
        except OSError as error:
            self._stop_writing(error)

    @contextmanager
    def claim(self, first: PieceKey, count: int, at_most_s: float) -> Iterator[None]:
        """Alone with `count` pieces of a shard, unless another keeps them longer: it may be stopped."""
        with ExitStack() as stack:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_locks.locked_range(self._limit.lock_file, first.lock_number, count, at_most_s))
            except OSError as error:
                self._stop_writing(error)
            yield

    def write(self, piece: PieceKey, payload: memoryview) -> None:
        """Keep a piece where there is room."""
        if not self._writable:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            reserved = self._limit.reserve(piece_file.file_bytes(len(payload)))
            if reserved is not None:
                self._write_file(piece, payload, *reserved)
        except FileNotFoundError:  # somebody empties the folder: the next piece makes it anew
            return
        except OSError as error:
            self._stop_writing(error)

    def _write_file(self, piece: PieceKey, payload: memoryview, partial: Path, file: BinaryIO) -> None:
        try:
            with file:
                file.write(piece_file.header(piece.seed, payload))
                file.write(payload)
                file.flush()
                self._limit.publish(partial, self._folder / piece.file_name)
        finally:
            partial.unlink(missing_ok=True)

    def _stop_writing(self, error: OSError) -> None:
        if self._writable:
            self._writable = False
            _log.warning(
                "the cache of shards %s cannot be used (%s): what is not in it is downloaded each time; "
                "set data.remote.cache_dir to a folder with room",
                *(self._folder, error.strerror),
            )
