"""Files that hold one piece of a shard and prove it at every read.

Layout, little-endian: b"stokerP1", payload bytes (u64), XXH3-64 of each CHUNK_BYTES of it, the payload. The checksums
are seeded with the piece it is of, so a file under another's name is refused. They are why nothing here is synced:
what a power cut tears is not used, and costs one download.
"""

import os
import struct

import xxhash

CHUNK_BYTES = 32 << 10
_MAGIC = b"stokerP1"
_HEADER = struct.Struct("<8sQ")


def file_bytes(payload_bytes: int) -> int:
    """The size of the file that holds so many bytes."""
    return _HEADER.size + 8 * _chunks(payload_bytes) + payload_bytes


def header(seed: int, payload: memoryview) -> bytes:
    """What comes before the payload."""
    sums = [_sum(payload[i : i + CHUNK_BYTES], seed) for i in range(0, len(payload), CHUNK_BYTES)]
    return _HEADER.pack(_MAGIC, len(payload)) + struct.pack(f"<{len(sums)}Q", *sums)


def read(descriptor: int, seed: int, payload_bytes: int, start: int, stop: int) -> bytes | None:
    """Bytes start … stop-1 of the payload, or None: the file is not what was written. OSError: cannot be read."""
    before = file_bytes(payload_bytes) - payload_bytes
    head = os.pread(descriptor, before, 0)
    if len(head) != before or _HEADER.unpack_from(head) != (_MAGIC, payload_bytes):
        return None
    # Whole chunks, since each checksum is of a whole one.
    first = start // CHUNK_BYTES
    begin, end = first * CHUNK_BYTES, min(_chunks(stop) * CHUNK_BYTES, payload_bytes)
    found = os.pread(descriptor, end - begin, before + begin)
    sums = struct.unpack_from(f"<{_chunks(end) - first}Q", head, _HEADER.size + 8 * first)
    view = memoryview(found)
    if len(found) != end - begin or any(
        _sum(view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES], seed) != expected for i, expected in enumerate(sums)
    ):
        return None
    return found[start - begin : stop - begin]


def _chunks(payload_bytes: int) -> int:
    return -(-payload_bytes // CHUNK_BYTES)


def _sum(chunk: memoryview, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(chunk, seed=seed)
