"""Deterministic WebDataset shards: the same samples give the same bytes on any machine."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError
from data.atomic import atomic_file

__all__ = ["DEFAULT_LIMITS", "TAR_BLOCK_BYTES", "ShardLimits", "tar_bytes"]


TAR_BLOCK_BYTES = 512
END_BYTES = 2 * TAR_BLOCK_BYTES  # of zeros, at least
RECORD_BYTES = 20 * TAR_BLOCK_BYTES  # an archive is a multiple of this
_MAX_NAME_BYTES = 100
_MAX_PART_BYTES = (8 << 30) - 1  # eleven octal digits
_WRITE_BYTES = 1 << 20
# POSIX.1-1988 ustar: mode 644, owner and group 0, time 0, a regular file; name, size and checksum are left blank.
_AFTER_NAME = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = sum(_AFTER_NAME + _TIME + _AFTER_CHECKSUM) + 8 * ord(" ")

Parts = dict[str, bytes]


@dataclass(frozen=True)
class ShardLimits:
    """A shard ends before it would exceed either; `bytes` are those of the archive, headers included."""

    bytes: int = 128 << 20
    samples: int = 100_000


DEFAULT_LIMITS = ShardLimits()


@dataclass(frozen=True)
class WrittenShard:
    """What was written; `content_bytes` are those of the parts alone."""

    bytes: int
    content_bytes: int
    samples: int
    sha256: str


class TarStream:
    """An archive written to `file` as samples come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._written = 0
        self._content_bytes = 0
        self._samples = 0

    def add(self, key: str, parts: Parts) -> None:
        """Add a sample; parts keep their order. DataError: a part does not fit into a tar."""
        for part, contents in parts.items():
            self._append(_header(f"{key}.{part}", len(contents)))
            self._append(contents)
            if rest := -len(contents) % TAR_BLOCK_BYTES:
                self._append(bytes(rest))
            self._content_bytes += len(contents)
        self._samples += 1

    def end(self) -> WrittenShard:
        """Write the zeros that end an archive."""
        self._append(bytes(END_BYTES + -(self._written + self._pending_bytes + END_BYTES) % RECORD_BYTES))
        self._flush()
        return WrittenShard(self._written, self._content_bytes, self._samples, self._digest.hexdigest())

    def _append(self, chunk: bytes) -> None:
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._digest.update(block)
        self._file.write(block)
        self._written += len(block)
        self._pending, self._pending_bytes = [], 0


def write_shard(path: Path, samples: Iterable[tuple[str, Parts]]) -> WrittenShard:
    """Write keys and parts to `path`, which appears when it is whole. Memory: one sample and 1 MiB."""
    with atomic_file(path) as file:
        tar = TarStream(file)
        for key, parts in samples:
            tar.add(key, parts)
        return tar.end()


def tar_bytes(sizes: Iterable[int]) -> int:
    """What parts of these sizes take in an archive."""
    return sum(TAR_BLOCK_BYTES + size + -size % TAR_BLOCK_BYTES for size in sizes)


def _header(name: str, size: int) -> bytes:
    encoded = name.encode()
    if len(encoded) > _MAX_NAME_BYTES or size > _MAX_PART_BYTES:
        raise DataError(
            f"{name}: {size} bytes under a name of {len(encoded)}, but a shard takes parts up to "
            f"{_MAX_PART_BYTES} bytes with names up to {_MAX_NAME_BYTES}: split it or shorten the name"
        )
    octal = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(octal))
    return b"".join((encoded.ljust(100, b"\0"), _AFTER_NAME, octal, _TIME, checksum, _AFTER_CHECKSUM))
