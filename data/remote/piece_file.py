"""Files that hold one piece of a shard and prove it at every read.

Layout, little-endian: b"stokerP1", payload bytes (u64), XXH3-64 of each GRAIN_BYTES of it, the payload. The checksums
are seeded with the piece it is of, so a file under another's name is refused. They are why nothing here is synced:
what a power cut tears is not believed, and costs one download.
"""

import os
import struct

import xxhash

GRAIN_BYTES = 32 << 10
_MAGIC = b"stokerP1"
_HEADER = struct.Struct("<8sQ")


def file_bytes(payload_bytes: int) -> int:
    """The size of the file that holds so many bytes."""
    return _HEADER.size + 8 * _grains(payload_bytes) + payload_bytes


def header(seed: int, payload: memoryview) -> bytes:
    """What comes before the payload."""
    sums = [_sum(payload[i : i + GRAIN_BYTES], seed) for i in range(0, len(payload), GRAIN_BYTES)]
    return _HEADER.pack(_MAGIC, len(payload)) + struct.pack(f"<{len(sums)}Q", *sums)


def read(descriptor: int, seed: int, payload_bytes: int, start: int, stop: int) -> bytes | None:
    """Bytes start … stop-1 of the payload, or None: the file is not what was written. OSError: cannot be read."""
    before = file_bytes(payload_bytes) - payload_bytes
    head = os.pread(descriptor, before, 0)
    if len(head) != before or _HEADER.unpack_from(head) != (_MAGIC, payload_bytes):
        return None
    first = start // GRAIN_BYTES
    begin, end = first * GRAIN_BYTES, min(_grains(stop) * GRAIN_BYTES, payload_bytes)
    found = os.pread(descriptor, end - begin, before + begin)
    sums = struct.unpack_from(f"<{_grains(end) - first}Q", head, _HEADER.size + 8 * first)
    view = memoryview(found)
    if len(found) != end - begin or any(
        _sum(view[i * GRAIN_BYTES : (i + 1) * GRAIN_BYTES], seed) != expected for i, expected in enumerate(sums)
    ):
        return None
    return found[start - begin : stop - begin]


def _grains(payload_bytes: int) -> int:
    return -(-payload_bytes // GRAIN_BYTES)


def _sum(grain: memoryview, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(grain, seed=seed)
