"""Reads of byte ranges of shards, from any thread, with a bounded number of open files."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError
from data.tar_index import ShardIndex

MAX_OPEN = 128


class _OpenShard:
    """Closed when the last reader lets go, so that eviction never closes a file in use."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Fetcher:
    """`read(shard, offset, size)` by shard number; files are opened at first use."""

    def __init__(self, shards: Sequence[Path], indexes: Sequence[ShardIndex], max_open: int = MAX_OPEN) -> None:
        self._shards = shards
        self._indexes = indexes
        self._max_open = max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. DataError: the shard is gone, unreadable, or not the one that was indexed."""
        try:
            found = os.pread(self._file(shard).descriptor, size, offset)
            while len(found) < size:  # Linux reads at most 2 GiB at once
                more = os.pread(self._file(shard).descriptor, size - len(found), offset + len(found))
                if not more:
                    raise self._changed(shard)
                found += more
        except OSError as error:
            raise DataError(f"{self._shards[shard]}: cannot be read ({error.strerror}): restore the shard") from error
        return found

    def close(self) -> None:
        """Let go of the open files."""
        with self._lock:
            self._open.clear()

    def _file(self, shard: int) -> _OpenShard:
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = self._checked(shard)
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return file

    def _checked(self, shard: int) -> _OpenShard:
        file = _OpenShard(self._shards[shard])
        status, index = os.fstat(file.descriptor), self._indexes[shard]
        if (status.st_size, status.st_mtime_ns) != (index.shard_bytes, index.mtime_ns):
            raise self._changed(shard)
        return file

    def _changed(self, shard: int) -> DataError:
        return DataError(
            f"{self._shards[shard]}: the shard changed after it was indexed: leave shards alone while they are read; "
            "start again to index it anew"
        )
