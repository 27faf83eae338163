"""Shard -> index: where each part of each sample lies. Samples follow WebDataset's key rule."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data import sidecar
from data.tar import Member, TarReader
from data.types import Array, Bytes, Ints, Say, silent

VERSION = 1
SIDECAR = "idx"
# webdataset.tariterators: key up to the first dot of the base name; hidden files have no key; __meta__ is skipped.
_KEY_AND_PART = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class ShardIndex:
    """`part_offsets[p, n]` and `part_sizes[p, n]` place part p of sample n in bytes; -1 where absent."""

    key_blob: Bytes
    key_offsets: Ints
    part_names: tuple[str, ...]
    part_offsets: Ints
    part_sizes: Ints
    shard_bytes: int
    mtime_ns: int
    headers_crc32: int

    @property
    def count(self) -> int:
        """Samples in the shard."""
        return len(self.key_offsets) - 1

    @property
    def stamp(self) -> tuple[int, int, int]:
        """What a derived file must agree with to be trusted."""
        return VERSION, self.shard_bytes, self.mtime_ns

    def key(self, sample: int) -> str:
        """The key of sample 0 … count-1."""
        return bytes(self.key_blob[self.key_offsets[sample] : self.key_offsets[sample + 1]]).decode()


def load_index(shard: Path, say: Say = silent) -> ShardIndex:
    """The kept index, or a new one (kept for the next time) when there is none or the shard changed."""
    kept = read_kept_index(shard)
    if kept is not None:
        return kept
    index = build_index(shard)
    sidecar.save(shard, SIDECAR, index.stamp, _to_arrays(index), say)
    return index


def read_kept_index(shard: Path) -> ShardIndex | None:
    """The index kept for the shard as it is now, if any. DataError: the shard cannot be read."""
    try:
        status = shard.stat()
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}): restore the shard or correct the path") from error
    arrays = sidecar.load(shard, SIDECAR, (VERSION, status.st_size, status.st_mtime_ns))
    return None if arrays is None else _from_arrays(arrays, status.st_size, status.st_mtime_ns)


def build_index(shard: Path) -> ShardIndex:
    """Read every tar header. DataError: not a tar, damaged, truncated, no samples, or a repeated key or part."""
    try:
        with TarReader(shard) as reader:
            samples = dict(_samples(shard, reader.members()))
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}): restore the shard or correct the path") from error
    if not samples:
        raise DataError(f"{shard}: the archive holds no samples: remove the shard or make it again")
    part_names = tuple(sorted({part for parts in samples.values() for part in parts}))
    part_offsets, part_sizes = _part_tables(list(samples.values()), part_names)
    keys = [key.encode() for key in samples]
    return ShardIndex(
        key_blob=np.frombuffer(b"".join(keys), np.uint8),
        key_offsets=np.cumsum([0, *map(len, keys)], dtype=np.int64),
        part_names=part_names,
        part_offsets=part_offsets,
        part_sizes=part_sizes,
        shard_bytes=reader.shard_bytes,
        mtime_ns=reader.mtime_ns,
        headers_crc32=reader.headers_crc32,
    )


def _samples(shard: Path, members: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Runs of members with the same key."""
    seen: set[str] = set()
    current, parts = "", dict[str, Member]()
    for member in members:
        match = _KEY_AND_PART.fullmatch(member.name)
        if match is None or _META.match(member.name):
            continue
        key, part = match[1], match[2].lower()
        if key != current:
            if parts:
                yield current, parts
            if key in seen:
                raise DataError(
                    f"{shard}: the parts of sample {key} are not together (or the key is used twice): "
                    "make the shard with keys in order, each used once"
                )
            seen.add(key)
            current, parts = key, {}
        if part in parts:
            raise DataError(f"{shard}: sample {key} has part {part} twice: keep one, or give the samples unique keys")
        parts[part] = member
    if parts:
        yield current, parts


def _part_tables(samples: list[dict[str, Member]], part_names: tuple[str, ...]) -> tuple[Ints, Ints]:
    offsets = np.full((len(part_names), len(samples)), -1, np.int64)
    sizes = offsets.copy()
    row = {name: number for number, name in enumerate(part_names)}
    for column, parts in enumerate(samples):
        for name, member in parts.items():
            offsets[row[name], column] = member.offset
            sizes[row[name], column] = member.size
    return offsets, sizes


def _to_arrays(index: ShardIndex) -> dict[str, Array]:
    return {
        "key_blob": index.key_blob,
        "key_offsets": index.key_offsets,
        "part_names": np.array(index.part_names, dtype=np.str_),
        "part_offsets": index.part_offsets,
        "part_sizes": index.part_sizes,
        "headers_crc32": np.array([index.headers_crc32], np.int64),
    }


def _from_arrays(arrays: dict[str, Array], shard_bytes: int, mtime_ns: int) -> ShardIndex:
    return ShardIndex(
        key_blob=arrays["key_blob"],
        key_offsets=arrays["key_offsets"],
        part_names=tuple(str(name) for name in arrays["part_names"]),
        part_offsets=arrays["part_offsets"],
        part_sizes=arrays["part_sizes"],
        shard_bytes=shard_bytes,
        mtime_ns=mtime_ns,
        headers_crc32=int(arrays["headers_crc32"][0]),
    )
