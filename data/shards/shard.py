"""What the rest of the data layer knows of a shard, wherever it lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["CHECKED_BYTES", "Checksums", "Shard", "Stat", "checksum"]











CHECKED_BYTES = 256 << 10


@dataclass(frozen=True)
class Stat:
    """`version` differs when the contents may: the modification time of a file, the ETag of an object."""

    size: int
    version: str


@dataclass(frozen=True)
class Checksums:
    """XXH3-64 of each CHECKED_BYTES of a shard as it was when it was indexed; the last block may be shorter."""

    stat: Stat
    blocks: npt.NDArray[np.uint64]


def checksum(block: bytes | memoryview) -> int:
    """XXH3-64."""
    return xxhash.xxh3_64_intdigest(block)


class Shard(Protocol):
    """A tar shard. Threads may share it; files and connections are opened at first use.

    Everything raises DataError naming the shard, what was found and what to do: gone, unreadable, not as expected.
    """

    @property
    def name(self) -> str:
        """As the user wrote it: it starts every message."""

    @property
    def identity(self) -> str:
        """The absolute path or the URL, without secrets."""

    @property
    def folder(self) -> Path | None:
        """Where files derived from the shard can lie beside it; None when it is not a local file."""

    def stat(self) -> Stat:
        """Asked anew each time."""

    def expect(self, checksums: Checksums) -> None:
        """From now on, refuse contents that differ: each block is checked when it is first read.

        Of a local file with no blocks given, only size and version are compared.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""

    def view(self, offset: int, size: int) -> memoryview:
        """Exactly `size` bytes, read-only; of a local file those of the page cache, for as long as the view is held."""

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """A hint that these (offset, size) are read soon; returns at once."""

    def stream(self) -> Iterator[bytes]:
        """The whole shard in order, in chunks of a multiple of CHECKED_BYTES (the last may be shorter)."""

    def beside(self, suffix: str) -> bytes | None:
        """The file named like the shard plus `suffix`; None when there is none."""

    def close(self) -> None:
        """Let go of what is open; it is opened again when needed."""
