"""Shards that are files: read by byte ranges from any thread, with a bounded number of open files."""

import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from weakref import ReferenceType, ref

import numpy as np

from configs.errors import DamagedDataError, DataError
from data.shards.shard import CHECKED_BYTES, Checksums, Stat, checksum

__all__ = ["LocalShard"]











MAX_OPEN = 256
_STREAMED_BYTES = 2 * CHECKED_BYTES  # larger chunks leave the processor's cache before they are parsed


class LocalShard:
    """A data.shards.shard.Shard. Contents that are expected are checked in whole blocks, when first read; a bad one each time."""

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._path = Path(path).absolute()
        self.identity = str(self._path)
        self.folder: Path | None = self._path.parent
        self._expected: Stat | None = None
        self._shard_bytes = 0
        self._blocks = np.empty(0, np.uint64)
        self._checked = bytearray()  # 1 for each block known to be as expected
        self._all_checked = True
        self._file: _OpenFile | None = None

    def stat(self) -> Stat:
        """Size and modification time in ns."""
        try:
            return _stat(self._path.stat())
        except OSError as error:
            raise self._unreadable(error) from error

    def expect(self, checksums: Checksums) -> None:
        """See data.shards.shard.Shard. Without blocks only size and time are compared, at each opening."""
        self.close()
        self._expected, self._shard_bytes, self._blocks = checksums.stat, checksums.stat.size, checksums.blocks
        self._checked = bytearray(len(checksums.blocks))
        self._all_checked = not self._checked

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        file = self._file or self._open()
        file.used = True
        try:
            contents = os.pread(file.descriptor, size, offset)
            if len(contents) != size:
                contents = self._read_rest(file, offset, memoryview(bytearray(size))).tobytes()
            if not self._all_checked:
                self._check(file, offset, size, contents)
        except OSError as error:
            raise self._unreadable(error) from error
        return contents

    def view(self, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes of the mapped file, which a held view keeps mapped (with a descriptor of its own).

        Blocks not known to be good are read, never touched here, so what is wrong with them is a DataError. Whoever
        touches a page that the file no longer has, or that the disk cannot read again, is killed by SIGBUS.
        """
        file = self._file or self._open()
        file.used = True
        try:
            found = file.mapped[offset : offset + size]
            if len(found) != size:
                raise self._changed()
            if not self._all_checked:
                self._check(file, offset, size)
        except OSError as error:
            raise self._unreadable(error) from error
        return found

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: the system reads ahead by itself."""

    def stream(self) -> Iterator[bytes]:
        """The whole shard in order."""
        try:
            file = _OpenFile(self._path)
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            offset = 0
            while chunk := os.pread(file.descriptor, _STREAMED_BYTES, offset):
                yield chunk
                offset += len(chunk)
        except OSError as error:
            raise self._unreadable(error) from error

    def beside(self, suffix: str) -> bytes | None:
        """The file named like the shard plus `suffix`; None when there is none."""
        try:
            return self._path.with_name(self._path.name + suffix).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        self._file = None

    def _open(self) -> "_OpenFile":
        try:
            file = _OpenFile(self._path)
            found = _stat(os.fstat(file.descriptor))
        except OSError as error:
            raise self._unreadable(error) from error
        if self._expected is not None and found != self._expected:
            raise self._changed()
        _OPEN.add(self, file)
        return file

    def _read_rest(self, file: "_OpenFile", offset: int, into: memoryview) -> memoryview:
        """Linux reads at most 2 GiB at once, and less when interrupted."""
        done = 0
        while done < len(into):
            count = os.preadv(file.descriptor, (into[done:],), offset + done)
            if not count:
                raise self._changed()
            done += count
        return into

    def _check(self, file: "_OpenFile", offset: int, size: int, contents: bytes = b"") -> None:
        """Compare the blocks that these bytes lie in, unless they are known to be good; `contents` where read."""
        first, last = offset // CHECKED_BYTES, (offset + size - 1) // CHECKED_BYTES
        if self._checked.find(0, first, last + 1) < 0:
            return
        for block in range(first, last + 1):
            if not self._checked[block]:
                self._check_block(file, block, offset, memoryview(contents))

    def _check_block(self, file: "_OpenFile", block: int, offset: int, contents: memoryview) -> None:
        """Where it lies within the contents when it is whole there, otherwise from the file."""
        start = block * CHECKED_BYTES
        stop = min(start + CHECKED_BYTES, self._shard_bytes)
        if offset <= start and stop <= offset + len(contents):
            found = contents[start - offset : stop - offset]
        else:
            found = self._read_rest(file, start, _scratch()[: stop - start])
        if checksum(found) != self._blocks[block]:
            raise self._damaged(start, stop)
        self._checked[block] = 1
        self._all_checked = 0 not in self._checked

    def _damaged(self, start: int, stop: int) -> DamagedDataError:
        return DamagedDataError(
            f"{self.name}: bytes {start} to {stop - 1} are not those that were indexed: the file is damaged, copy the "
            "shard again (`stoker data verify` names the samples); if it was meant to change, remove its index "
            f"{self._path.name}.stoker-idx.npz"
        )

    def _changed(self) -> DataError:
        if self._expected is None:
            return DataError(f"{self.name}: the file ends too early: make or copy the shard again")
        return DataError(
            f"{self.name}: the shard changed after it was indexed: leave shards alone while they are read; "
            "start again to index it anew"
        )

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(f"{self.name}: cannot be read ({error.strerror}): restore the shard or correct the path")


class _OpenFile:
    """Closed when the last reader lets go, so that dropping it from the open ones never closes a file in use."""

    def __init__(self, path: Path) -> None:
        self.used = True
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @cached_property
    def mapped(self) -> memoryview:
        """The file as long as it is now."""
        if os.fstat(self.descriptor).st_size == 0:
            return memoryview(b"")
        # Some file systems in user space refuse shared mappings.
        return memoryview(mmap.mmap(self.descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _OpenFiles:
    """The files that this process holds open; beyond the limit one not used lately is dropped (the clock algorithm)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._clock: deque[tuple[ReferenceType[LocalShard], ReferenceType[_OpenFile]]] = deque()

    def add(self, shard: LocalShard, file: _OpenFile) -> None:
        """Make it the shard's file."""
        with self._lock:
            shard._file = file
            self._clock.append((ref(shard), ref(file)))
            while len(self._clock) > self.limit:
                self._advance()

    def _advance(self) -> None:
        owner, opened = self._clock.popleft()
        shard, file = owner(), opened()
        if shard is None or file is None or shard._file is not file:
            return  # closed since
        if file.used:
            file.used = False
            self._clock.append((owner, opened))
        else:
            shard._file = None


_OPEN = _OpenFiles(MAX_OPEN)
_LOCAL = threading.local()


def _scratch() -> memoryview:
    """CHECKED_BYTES of this thread, for one block at a time."""
    if not hasattr(_LOCAL, "scratch"):
        _LOCAL.scratch = memoryview(bytearray(CHECKED_BYTES))
    found: memoryview = _LOCAL.scratch
    return found


def _stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, str(status.st_mtime_ns))
