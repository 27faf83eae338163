"""Is every byte of a shard the one that was written? Compared with its index and with manifest.json beside it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.arrays import Array, Say
from data.index import sidecar
from data.index.shard_index import SIDECAR, ShardIndex, last_kept_index, with_checksums
from data.index.tar_header_fields import HEADER_BYTES
from data.pack.pack_manifest import MANIFEST
from data.shards.shard import CHECKED_BYTES, Shard

_NAMED_SAMPLES = 5


@dataclass(frozen=True)
class ManifestEntry:
    """What manifest.json says of a shard."""

    bytes: int
    samples: int
    sha256: str


class Manifests:
    """Those beside shards, each read once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._read: dict[Path, dict[str, ManifestEntry]] = {}

    def entry(self, shard: Shard) -> ManifestEntry | None:
        """What the manifest beside a local shard says of it, if it does."""
        if shard.folder is None:
            return None
        path = shard.folder / MANIFEST
        if path not in self._read:
            self._read[path] = self._entries(path) if path.is_file() else {}
        return self._read[path].get(Path(shard.identity).name)

    def missing_shards(self, wanted: Callable[[Path], bool]) -> Iterator[str]:
        """One problem for each shard that a manifest read so far lists, that is `wanted`, and that is not there."""
        for path, entries in self._read.items():
            for shard in map(path.with_name, entries):
                if wanted(shard) and not shard.exists():
                    yield f"{shard}: {MANIFEST} lists it, but there is no such file: copy it again"

    def _entries(self, path: Path) -> dict[str, ManifestEntry]:
        try:
            entries = json.loads(path.read_bytes())["shards"]
            return {
                entry["name"]: ManifestEntry(entry["bytes"], entry["samples"], entry["sha256"]) for entry in entries
            }
        except (ValueError, KeyError, TypeError):
            self._say(f"{path}: not a manifest of `stoker data pack`, or a damaged one: nothing is compared with it")
            return {}


class ExpectedContents:
    """What is known of a shard from before; `kept` is the index of the shard as it is, or as it was."""

    def __init__(self, shard: Shard, manifests: Manifests) -> None:
        self._shard = shard
        self._stat = shard.stat()
        self.kept = last_kept_index(shard)
        self._written = manifests.entry(shard)

    @property
    def comparable(self) -> bool:
        """Whether there is anything to compare the contents with."""
        return self._written is not None or self._same_size is not None

    @property
    def _same_size(self) -> ShardIndex | None:
        kept = self.kept
        return kept if kept is not None and kept.checksums.stat.size == self._stat.size else None

    def problems(self, found: ShardIndex | None) -> Iterator[str]:
        """One for each run of blocks that differ; `found` is the shard's index as read now, None when unreadable."""
        if self._written is not None:
            yield from self._against_manifest(self._written, found)
        kept = self._same_size
        if kept is None:
            return
        made_anew = found is not None and found.layout != kept.layout and kept.checksums.stat != self._stat
        if not made_anew:
            yield from self._against_index(kept, checksums_of(self._shard) if found is None else found.checksums.blocks)

    def _against_index(self, kept: ShardIndex, blocks: Array) -> Iterator[str]:
        differs = blocks != kept.checksums.blocks
        edges = np.flatnonzero(np.diff(differs, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            start, stop = first * CHECKED_BYTES, min(last * CHECKED_BYTES, self._stat.size)
            yield (
                f"{self._shard.name}: bytes {start} to {stop - 1} are not those that were indexed; there lie "
                f"{_samples_in(kept, start, stop)}: copy the shard again; if it was meant to change, remove its "
                f"index {self._shard.name.rpartition('/')[2]}{sidecar.suffix(SIDECAR)}"
            )

    def _against_manifest(self, written: ManifestEntry, found: ShardIndex | None) -> Iterator[str]:
        where = f"{self._shard.name}: {MANIFEST} says"
        if self._stat.size != written.bytes:
            yield f"{where} {written.bytes} bytes, the shard has {self._stat.size}: copy it again"
            return
        if found is not None and found.count != written.samples:
            yield f"{where} {written.samples} samples, the shard has {found.count}: copy it again"
        sha256 = hashlib.sha256()
        for chunk in self._shard.stream():
            sha256.update(chunk)
        if sha256.hexdigest() != written.sha256:
            yield (
                f"{where} sha256 {written.sha256}, the shard has {sha256.hexdigest()}: bytes between 0 and "
                f"{written.bytes - 1} are not those that were written: copy it again"
            )


def checksums_of(shard: Shard) -> Array:
    """Of each block as it is now."""
    sums: list[int] = []
    for _ in with_checksums(shard.stream(), sums):
        pass
    return np.array(sums, np.uint64)


def _samples_in(index: ShardIndex, start: int, stop: int) -> str:
    """The samples of which headers, contents or padding lie in bytes start … stop-1."""
    parts, samples = np.nonzero(index.part_sizes >= 0)
    offsets, sizes = index.part_offsets[parts, samples], index.part_sizes[parts, samples]
    order = np.argsort(offsets)
    ends = (offsets + -(-sizes // HEADER_BYTES) * HEADER_BYTES)[order]
    starts = np.concatenate(([0], ends[:-1]))
    samples = np.unique(samples[order][(starts < stop) & (ends > start)])
    if not len(samples):
        return "no samples (padding, or the end of the archive)"
    names = ", ".join(index.key(sample) for sample in samples[:_NAMED_SAMPLES].tolist())
    more = len(samples) - _NAMED_SAMPLES
    return f"samples {names}" + (f" and {more} more" if more > 0 else "")
