"""Shard -> index: where each part of each sample lies, and checksums of every block. Kept as a sidecar."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from configs.errors import DataError
from data.arrays import Array, Bytes, Ints, Say, silent
from data.index import energon, sidecar
from data.index.grouping import Grouping, key_table
from data.index.npz_map import parse_npz
from data.index.shuffle_blocks import GROUP_SAMPLES
from data.index.tar_members import TarParser
from data.shards.shard import CHECKED_BYTES, Checksums, Shard, Stat, checksum

__all__ = ["SIDECAR", "ShardIndex", "build_index", "last_kept_index", "load_index", "with_checksums"]


VERSION = 2  # of the file: one of another version is built again
SIDECAR = "idx"


@dataclass(frozen=True)
class ShardIndex:
    """`part_offsets[p, n]` and `part_sizes[p, n]` place part p of sample n in bytes; -1 where absent.

    `group_bytes` sums the parts of each run of GROUP_SAMPLES samples; `part_counts[p]` samples have part p. `digest`
    (sha256) changes with the keys, the layout and the contents, and with nothing else.
    """

    key_blob: Bytes
    key_offsets: Ints
    part_names: tuple[str, ...]
    part_offsets: Ints
    part_sizes: Ints
    group_bytes: Ints
    part_counts: Ints
    checksums: Checksums
    digest: str

    @property
    def count(self) -> int:
        """Samples in the shard."""
        return len(self.key_offsets) - 1

    @property
    def stamp(self) -> str:
        """What a derived file must agree with to be used."""
        return self.digest

    def key(self, sample: int) -> str:
        """The key of sample 0 … count-1."""
        return bytes(self.key_blob[self.key_offsets[sample] : self.key_offsets[sample + 1]]).decode()

    @cached_property
    def layout(self) -> str:
        """sha256 over keys and the places of parts, whatever the contents."""
        return _layout(self.key_blob, self.key_offsets, self.part_names, self.part_offsets, self.part_sizes)


def load_index(shard: Shard, say: Say = silent) -> ShardIndex:
    """The kept index, or a new one (kept for the next time) when there is none or the shard changed.

    DataError: see `build_index`.
    """
    stat = shard.stat()  # once: far away, each costs a request
    kept = _kept_index_of(shard, stat)
    if kept is not None:
        return kept
    with sidecar.build_lock(shard, SIDECAR):
        return (
            _kept_index_of(shard, stat) or _adopt_published_index(shard, stat, say) or _rebuild_index(shard, stat, say)
        )


def read_kept_index(shard: Shard) -> ShardIndex | None:
    """The index kept for the shard as it is now, if any. DataError: the shard cannot be read."""
    return _kept_index_of(shard, shard.stat())


def last_kept_index(shard: Shard) -> ShardIndex | None:
    """The index kept for the shard as it is now or, when there is none, as it was before."""
    return read_kept_index(shard) or next(_kept_indexes(shard), None) or _published_index(shard)


def build_index(shard: Shard, say: Say = silent, stat: Stat | None = None) -> ShardIndex:
    """Read the shard once, from end to end; `stat` is what it was just now, when that is known.

    DataError: not a tar, damaged, truncated, no samples, a repeated key or part, or it changes meanwhile.
    """
    stat = stat or shard.stat()
    sums: list[int] = []
    parser, grouping = TarParser(shard.name, stat.size), Grouping(shard.name)
    for members in parser.members(with_checksums(shard.stream(), sums)):
        grouping.add(members)
    # Its beginning may be of one version and its end of another, which no checksum would show.
    if shard.stat() != stat:
        raise DataError(f"{shard.name}: the shard changed while it was indexed: leave shards alone once they are made")
    part_names, part_offsets, part_sizes, starts = grouping.tables()
    if parser.end is not None:
        energon.compare_starts(shard, starts, parser.end, say)
    key_blob, key_offsets = key_table(grouping.keys)
    checksums = Checksums(stat, np.array(sums, np.uint64))
    layout = _layout(key_blob, key_offsets, part_names, part_offsets, part_sizes)
    return ShardIndex(
        key_blob=key_blob,
        key_offsets=key_offsets,
        part_names=part_names,
        part_offsets=part_offsets,
        part_sizes=part_sizes,
        group_bytes=_group_bytes(part_sizes),
        part_counts=(part_sizes >= 0).sum(axis=1),
        checksums=checksums,
        digest=hashlib.sha256(f"{layout} {stat.size} ".encode() + checksums.blocks.tobytes()).hexdigest(),
    )


def with_checksums(chunks: Iterator[bytes], sums: list[int]) -> Iterator[bytes]:
    """The same chunks of a shard; the checksum of each block is appended to `sums`."""
    for chunk in chunks:
        view = memoryview(chunk)
        sums += [checksum(view[at : at + CHECKED_BYTES]) for at in range(0, len(chunk), CHECKED_BYTES)]
        yield chunk


def _kept_index_of(shard: Shard, stat: Stat) -> ShardIndex | None:
    return next((index for index in _kept_indexes(shard) if index.checksums.stat == stat), None)


def _adopt_published_index(shard: Shard, stat: Stat, say: Say) -> ShardIndex | None:
    """The index beside a remote shard, taken for its own when size, first and last block agree; kept in the cache."""
    index = _published_index(shard)
    if index is None:
        return None
    if index.checksums.stat.size != stat.size or not _ends_agree(shard, index.checksums):
        say(
            f"{shard.name}: the index beside it ({sidecar.suffix(SIDECAR)}) is of another shard and is not used: "
            "publish the index of this one, or remove it"
        )
        return None
    adopted = replace(index, checksums=replace(index.checksums, stat=stat))
    _save(shard, adopted, say)
    return adopted


def _ends_agree(shard: Shard, expected: Checksums) -> bool:
    size = expected.stat.size
    # Two blocks, not all: whatever else differs is refused when it is read.
    starts = sorted({0, (len(expected.blocks) - 1) * CHECKED_BYTES})
    found = [checksum(shard.read(start, min(CHECKED_BYTES, size - start))) for start in starts]
    return found == [int(expected.blocks[start // CHECKED_BYTES]) for start in starts]


def _published_index(shard: Shard) -> ShardIndex | None:
    if shard.folder is not None:  # it was looked for as a file
        return None
    contents = shard.beside(sidecar.suffix(SIDECAR))
    try:
        return None if contents is None else _from_arrays(parse_npz(contents))
    except ValueError:
        return None


def _rebuild_index(shard: Shard, stat: Stat, say: Say) -> ShardIndex:
    stale = next(_kept_indexes(shard), None)
    index = build_index(shard, say, stat)
    if stale is not None and stale.layout == index.layout and stale.checksums.stat.size == index.checksums.stat.size:
        # The same samples in the same places, and other bytes: more often damage than a change.
        changed = int((stale.checksums.blocks != index.checksums.blocks).sum())
        if changed:
            say(
                f"WARNING: {shard.name}: the contents of {changed} of {len(stale.checksums.blocks)} blocks of "
                f"{CHECKED_BYTES >> 10} KiB changed since it was indexed, its samples did not: if nobody changed them, "
                "the file is damaged: copy the shard again"
            )
    _save(shard, index, say)
    return index


def _save(shard: Shard, index: ShardIndex, say: Say) -> None:
    sidecar.save(shard, SIDECAR, _stamp(index.checksums.stat), _to_arrays(index), say)


def _kept_indexes(shard: Shard) -> Iterator[ShardIndex]:
    for arrays in sidecar.load_intact(shard, SIDECAR):
        index = _from_arrays(arrays)
        if index is not None:
            yield index


def _stamp(stat: Stat) -> str:
    return f"{VERSION} {stat.size} {stat.version}"


def _to_arrays(index: ShardIndex) -> dict[str, Array]:
    return {
        "key_blob": index.key_blob,
        "key_offsets": index.key_offsets,
        "part_names": np.array(index.part_names, dtype=np.str_),
        "part_offsets": index.part_offsets,
        "part_sizes": index.part_sizes,
        "group_bytes": index.group_bytes,
        "part_counts": index.part_counts,
        "blocks": index.checksums.blocks,
        "digest": np.array(index.digest),
    }


def _from_arrays(arrays: dict[str, Array]) -> ShardIndex | None:
    """None when another version wrote them."""
    version, _, stat = str(arrays.get("stamp", "")).partition(" ")
    if version != str(VERSION):
        return None
    size, _, shard_version = stat.partition(" ")
    return ShardIndex(
        key_blob=arrays["key_blob"],
        key_offsets=arrays["key_offsets"],
        part_names=tuple(arrays["part_names"].tolist()),
        part_offsets=arrays["part_offsets"],
        part_sizes=arrays["part_sizes"],
        group_bytes=arrays["group_bytes"],
        part_counts=arrays["part_counts"],
        checksums=Checksums(Stat(int(size), shard_version), arrays["blocks"]),
        digest=str(arrays["digest"]),
    )


def _group_bytes(part_sizes: Ints) -> Ints:
    sample_bytes = np.maximum(part_sizes, 0).sum(axis=0)
    groups: Ints = np.add.reduceat(sample_bytes, np.arange(0, len(sample_bytes), GROUP_SAMPLES))
    return groups


def _layout(key_blob: Bytes, key_offsets: Ints, part_names: tuple[str, ...], offsets: Ints, sizes: Ints) -> str:
    digest = hashlib.sha256("\0".join(part_names).encode())
    for array in (key_offsets, key_blob, offsets, sizes):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
