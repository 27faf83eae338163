"""The size limit of a cache folder, kept by all processes of the node together."""

import fcntl
import os
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.remote import file_locks

_LOCK_NUMBER = 0
_LOCK_WAIT_S = 2.0
# Evicting more than is needed makes looking for the oldest rare.
_KEPT_SHARE = 0.9
_PARTIAL = ".tmp"
_USED = struct.Struct("<Q")


class CacheLimit:
    """Keeps `folder` below `limit_bytes` by removing those used least recently (by modification time).

    `used` counts the bytes of all files, those being written included: it may be too high after a crash, never too
    low, and each process counts anew before its first file and whenever the limit is reached.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._used = folder / "used"
        self._counted = False
        self._threads = threading.Lock()

    def reserve(self, size: int) -> tuple[Path, BinaryIO] | None:
        """An empty file of `size` bytes to be filled and renamed; None: it is too large, or another holds the lock.

        It stays locked (flock) until closed, which sets it apart from what a killed process left behind. OSError: the
        folder cannot be written.
        """
        # Threads wait for the first lock, which wakes them; processes look at the second now and then.
        with self._threads, file_locks.locked_range(self.lock_file, _LOCK_NUMBER, 1, _LOCK_WAIT_S) as alone:
            if not alone:
                return None
            used = self._last_used() if self._counted else None
            if used is None or used + size > self._limit_bytes:
                used = self._evict(size)
                self._counted = True
            if used + size > self._limit_bytes:
                return None
            self._set_used(used + size)
            return self._create(size)

    def publish(self, partial: Path, path: Path) -> None:
        """Rename a filled file; not while another process counts, which could see it under neither name."""
        with self._threads, file_locks.locked_range(self.lock_file, _LOCK_NUMBER, 1, _LOCK_WAIT_S):
            partial.replace(path)

    @property
    def lock_file(self) -> Path:
        """Lock number 0 of it guards the size; other numbers are pieces' (`PieceKey.lock_number`)."""
        return self._folder / "locks"

    def _create(self, size: int) -> tuple[Path, BinaryIO]:
        path = self._folder / f".{uuid.uuid4().hex}{_PARTIAL}"
        file = path.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file.fileno(), size)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return path, file

    def _last_used(self) -> int | None:
        try:
            return int(_USED.unpack(self._used.read_bytes())[0])
        except (FileNotFoundError, struct.error):
            return None

    def _set_used(self, used: int) -> None:
        # In place: a file that is cut and written again is flushed to disk by ext4, a hundred times slower.
        descriptor = os.open(self._used, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.pwrite(descriptor, _USED.pack(used), 0)
        finally:
            os.close(descriptor)

    def _evict(self, size: int) -> int:
        """Bytes in use after leftovers, and old files if need be, are removed."""
        found = sorted(self._files())
        used = sum(file_bytes for _, file_bytes, _ in found)
        goal = used if used + size <= self._limit_bytes else int(_KEPT_SHARE * self._limit_bytes) - size
        for _, file_bytes, path in found:
            if used <= goal:
                break
            if not path.name.endswith(_PARTIAL):  # the others are being written by living processes
                path.unlink(missing_ok=True)
                used -= file_bytes
        return used

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """(modification time, bytes, path) of pieces, whole or being written."""
        for path in self._folder.iterdir():
            if path == self.lock_file or path == self._used:
                continue
            try:
                if path.name.endswith(_PARTIAL) and _is_leftover(path):
                    path.unlink()
                    continue
                status = path.stat()
            except FileNotFoundError:  # renamed or removed just now
                continue
            yield status.st_mtime_ns, status.st_size, path


def _is_leftover(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
