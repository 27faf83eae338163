"""What bounds any reader, for `benchmarks.data`: `python -m benchmarks.data.limit_contenders FOLDER`.

Bytes from the page cache by readinto, JPEG decoding alone, and Python's own tar parser.
"""

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.common.child import measured, measured_once, serve
from benchmarks.data.sample_shards import PARTS, shards

PIECE_BYTES = 1 << 20
BATCH = 64
_Range = tuple[int, int, int]  # descriptor, offset, bytes


class Limits:
    """Handlers; files and ranges stay from one question to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranges: dict[str, list[_Range]] = {}

    def pieces(self, kind: str, seconds: float) -> dict[str, Any]:
        """The tars from end to end into one buffer; the count is of bytes."""
        opened = [os.open(path, os.O_RDONLY) for path in shards(self._folder, kind)]
        buffer = memoryview(bytearray(PIECE_BYTES))

        def epoch() -> Iterator[int]:
            for descriptor in opened:
                offset = 0
                while count := os.preadv(descriptor, [buffer], offset):
                    offset += count
                    yield count

        try:
            return measured(epoch, seconds)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def samples(self, kind: str, seconds: float) -> dict[str, Any]:
        """The first part of each sample, in random order, into one buffer; the count is of bytes."""
        ranges = self._sample_ranges(kind)
        buffer = memoryview(bytearray(max(size for _, _, size in ranges)))

        def epoch() -> Iterator[int]:
            for start in range(0, len(ranges), BATCH):
                yield sum(os.preadv(file, [buffer[:size]], at) for file, at, size in ranges[start : start + BATCH])

        return measured(epoch, seconds)

    def decode(self, seconds: float) -> dict[str, Any]:
        """JPEGs in memory to RGB, each into memory of its own, one after the other."""
        ranges = self._sample_ranges("jpeg")
        jpegs = [os.pread(file, size, at) for file, at, size in ranges[: 8 * BATCH]]

        def epoch() -> Iterator[int]:
            for jpeg in jpegs:
                yield len(simplejpeg.decode_jpeg(jpeg, "RGB")[:1])

        return measured(epoch, seconds)

    def tarfile(self, kind: str) -> dict[str, Any]:
        """Every header by the standard library; the count is of members."""
        return measured_once(lambda: sum(_members(path) for path in shards(self._folder, kind)))

    def _sample_ranges(self, kind: str) -> list[_Range]:
        if kind not in self._ranges:
            found = []
            for path in shards(self._folder, kind):
                descriptor = os.open(path, os.O_RDONLY)
                with tarfile.open(path) as tar:
                    members = (m for m in tar if m.name.endswith(PARTS[kind][0]))
                    found += [(descriptor, member.offset_data, member.size) for member in members]
            self._ranges[kind] = [found[i] for i in np.random.default_rng(3).permutation(len(found))]
        return self._ranges[kind]


def _members(path: str) -> int:
    with tarfile.open(path) as tar:
        return sum(1 for member in tar if member.isreg() and member.offset_data)


def main() -> None:
    """Serve."""
    limits = Limits(Path(sys.argv[1]))
    serve({name: getattr(limits, name) for name in ("pieces", "samples", "decode", "tarfile")})


if __name__ == "__main__":
    main()
