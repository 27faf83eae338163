"""Appending to a file while the disk may be full: what does not fit waits in memory."""

import errno
import os
from contextlib import suppress
from pathlib import Path


class FullDiskFile:
    """`append` never fails for want of room; `sync` tells whether all of it is on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._end = os.fstat(self._descriptor).st_size
        self._waiting = bytearray()

    def append(self, content: bytes) -> None:
        """Write now if there is room, else with a later append or sync."""
        self._waiting += content
        with suppress(OSError):  # `sync`, before every checkpoint, raises it
            self._write()

    def sync(self) -> None:
        """Make everything durable. Raises OSError when some of it has no room yet."""
        self._write()
        os.fsync(self._descriptor)

    def _write(self) -> None:
        # At a known place, so that a write that was cut short is overwritten by the whole.
        if os.pwrite(self._descriptor, self._waiting, self._end) != len(self._waiting):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._end += len(self._waiting)
        self._waiting.clear()

    def close(self) -> None:
        """Without a `sync`: what still waits for room is lost."""
        os.close(self._descriptor)
