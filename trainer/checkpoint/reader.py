"""Loading: the newest checkpoint that is whole and valid, each rank reading and checking just the blocks it needs.

Nothing of a checkpoint is parsed but the manifest's JSON: tensors are bytes at offsets, and every block is checked
before it is used, so a foreign file is refused without looking into it.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch

from configs.errors import CheckpointError, DamagedCheckpointError, StokerError
from trainer.checkpoint.block_files import BLOCK_BYTES, block_digest, digest_of_block, host_memory
from trainer.checkpoint.manifest import FRAGMENT_ITEM_BYTES, Manifest, StoredFile, StoredFragment, check_coverage
from trainer.checkpoint.snapshot import DTYPES
from trainer.checkpoint.store_protocol import (
    CheckpointFolder,
    CheckpointStore,
    StoredBytes,
    open_stored,
    read_manifest,
    translate_errors,
)
from trainer.engine.engine_protocol import Engine, Extent, ReadSlice, Scalars
from trainer.rank.ranks import Ranks

__all__ = ["CheckpointReader", "check_model", "open_newest", "restore", "verify"]


_THREADS = 4  # a disk, or a store, wants some requests under way at once; hashing takes a processor each


@dataclass(frozen=True)
class _BlockRun:
    """Blocks [first, last] of one file, in memory and checked."""

    first: int
    last: int
    memory: memoryview


@dataclass
class CheckpointReader:
    """Random access to one checkpoint; what is read is checked against the manifest. Use as a context manager."""

    folder: CheckpointFolder
    manifest: Manifest
    _open: dict[str, StoredBytes] = field(default_factory=dict)
    _runs: dict[str, list[_BlockRun]] = field(default_factory=lambda: defaultdict(list))
    _recent: dict[str, list[_BlockRun]] = field(default_factory=dict)
    _stored: dict[str, StoredFile] = field(default_factory=dict)
    _fragments: dict[tuple[str, str], list[StoredFragment]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._stored = {stored.name: stored for stored in self.manifest.files}
        for fragment in sorted(self.manifest.fragments, key=lambda f: f.start):
            self._fragments[fragment.kind, fragment.parameter].append(fragment)

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files. Tensors that were read stay valid: they keep their memory."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._runs.clear()

    def fetch(self, extents: Iterable[Extent], headers: Iterable[str] = ()) -> None:
        """Read and check, in parallel, all that `read` and `buffers` will be asked for; and the heads of some files.

        Raises DamagedCheckpointError naming the first file of which any byte needed here is not what was written.
        """
        wanted: dict[str, set[int]] = defaultdict(set)
        for file, start, stop in self._byte_ranges(extents):
            wanted[file].update(range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1))
        for file in headers:
            wanted[file].update(range(-(-self._head_bytes(file) // BLOCK_BYTES)))
        for file, blocks in sorted(wanted.items()):
            for first, last in _runs_of(sorted(blocks)):
                self._runs[file].append(self._read_run(file, first, last))

    def _byte_ranges(self, extents: Iterable[Extent]) -> Iterator[tuple[str, int, int]]:
        kinds = sorted({fragment.kind for fragment in self.manifest.fragments})
        for parameter, start, stop in extents:
            for kind in kinds:
                for fragment in self._fragments.get((kind, parameter), ()):
                    low, high = max(start, fragment.start), min(stop, fragment.start + fragment.count)
                    if low < high:
                        # Byte of the parameter's element 0, were the fragment to reach back to it.
                        at = fragment.offset - fragment.start * FRAGMENT_ITEM_BYTES
                        yield fragment.file, at + low * FRAGMENT_ITEM_BYTES, at + high * FRAGMENT_ITEM_BYTES
        for buffer in self.manifest.buffers.values():
            size = _buffer_bytes(buffer.dtype, buffer.shape)
            if size:
                yield buffer.file, buffer.offset, buffer.offset + size

    def _head_bytes(self, file: str) -> int:
        """All that comes before the first tensor of a file."""
        offsets = [f.offset for f in self.manifest.fragments if f.file == file]
        offsets += [b.offset for b in self.manifest.buffers.values() if b.file == file]
        return min([*offsets, self._stored[file].bytes])

    def _read_run(self, name: str, first: int, last: int) -> _BlockRun:
        memory = host_memory((last - first + 1) * BLOCK_BYTES)

        def read(block: int) -> None:
            place = (block - first) * BLOCK_BYTES
            self._read_block(name, block, memory[place : place + BLOCK_BYTES])

        self._file(name)  # opened here: threads that raced to open it would leave some descriptors open
        with ThreadPoolExecutor(min(_THREADS, last - first + 1)) as pool:
            list(pool.map(read, range(first, last + 1)))
        return _BlockRun(first, last, memory)

    def _read_block(self, name: str, block: int, into: memoryview) -> None:
        stored, start = self._stored[name], block * BLOCK_BYTES
        size = min(BLOCK_BYTES, stored.bytes - start)
        where = f"{self.folder.where}/{name}"
        file = self._file(name)
        translate_errors(where, partial(file.read_into, start, into, size))
        # Before anybody looks at them: a foreign or damaged file is refused without its bytes being interpreted.
        if block_digest(into[:size]) != digest_of_block(stored.blocks, block):
            raise DamagedCheckpointError(
                f"{where} is damaged: bytes {start} to {start + size} are not what the manifest says"
            )

    def _file(self, name: str) -> StoredBytes:
        if name not in self._open:
            self._open[name] = open_stored(self.folder, self._stored[name])
        return self._open[name]

    def _bytes(self, name: str, start: int, size: int) -> memoryview:
        """A view of fetched memory, or else read now."""
        if size == 0:
            return memoryview(bytearray(0))
        first, last = start // BLOCK_BYTES, (start + size - 1) // BLOCK_BYTES
        candidates = [*self._runs.get(name, ()), *self._recent.get(name, ())]
        run = next((each for each in candidates if each.first <= first and last <= each.last), None)
        if run is None:
            run = self._read_run(name, first, last)
            self._recent[name] = [run]  # the next tensor often begins in the same block
        offset = start - run.first * BLOCK_BYTES
        return run.memory[offset : offset + size]

    def read(self, kind: str, parameter: str) -> ReadSlice | None:
        """A reader of element ranges of one state, or None when the checkpoint has no such state."""
        stored = self._fragments.get((kind, parameter))
        return (lambda start, stop: self._read_range(stored, start, stop)) if stored else None

    def _read_range(self, stored: list[StoredFragment], start: int, stop: int) -> torch.Tensor:
        pieces = []
        for fragment in stored:
            low, high = max(start, fragment.start), min(stop, fragment.start + fragment.count)
            if low < high:
                offset = fragment.offset + (low - fragment.start) * FRAGMENT_ITEM_BYTES
                view = self._bytes(fragment.file, offset, (high - low) * FRAGMENT_ITEM_BYTES)
                pieces.append(torch.frombuffer(view, dtype=torch.float32))
        return pieces[0] if len(pieces) == 1 else torch.cat([torch.empty(0), *pieces])

    def buffers(self) -> dict[str, torch.Tensor]:
        """Every buffer and frozen parameter by name, whole, on the host. Raises DamagedCheckpointError."""
        return {name: self._buffer(name) for name in self.manifest.buffers}

    def _buffer(self, name: str) -> torch.Tensor:
        buffer = self.manifest.buffers[name]
        size = _buffer_bytes(buffer.dtype, buffer.shape)
        if size == 0:
            return torch.empty(buffer.shape, dtype=DTYPES[buffer.dtype])
        view = self._bytes(buffer.file, buffer.offset, size)
        return torch.frombuffer(view, dtype=DTYPES[buffer.dtype]).reshape(buffer.shape)

    def digests(self) -> dict[str, str]:
        """sha256 of each state by `kind/parameter`, and of each buffer: the same for every layout of the same state."""
        digests = {}
        for kind, parameter in sorted(self._fragments):
            digest = hashlib.sha256()
            for fragment in self._fragments[kind, parameter]:
                digest.update(self._bytes(fragment.file, fragment.offset, fragment.count * FRAGMENT_ITEM_BYTES))
            digests[f"{kind}/{parameter}"] = digest.hexdigest()
        for name, buffer in sorted(self.manifest.buffers.items()):
            size = _buffer_bytes(buffer.dtype, buffer.shape)
            digests[f"buffer/{name}"] = hashlib.sha256(self._bytes(buffer.file, buffer.offset, size)).hexdigest()
        return digests


def _buffer_bytes(dtype: str, shape: list[int]) -> int:
    return torch.Size(shape).numel() * DTYPES[dtype].itemsize


def _runs_of(blocks: list[int]) -> Iterator[tuple[int, int]]:
    first = previous = blocks[0]
    for block in blocks[1:]:
        if block != previous + 1:
            yield first, previous
            first = block
        previous = block
    yield first, previous


def verify(folder: CheckpointFolder) -> Manifest:
    """Compare all of every file with size, block checksums and sha256 of the manifest.

    Raises DamagedCheckpointError naming the file, CheckpointError when one cannot be read.
    """
    manifest = read_manifest(folder)
    check_coverage(manifest)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda stored: _verify_file(folder, stored), manifest.files))
    return manifest


def _verify_file(folder: CheckpointFolder, stored: StoredFile) -> None:
    where, digest, memory = f"{folder.where}/{stored.name}", hashlib.sha256(), host_memory(BLOCK_BYTES)
    file = open_stored(folder, stored)
    try:
        for start in range(0, stored.bytes, BLOCK_BYTES):
            size = min(BLOCK_BYTES, stored.bytes - start)
            translate_errors(where, partial(file.read_into, start, memory, size))
            digest.update(memory[:size])
    finally:
        file.close()
    if digest.hexdigest() != stored.sha256:
        raise DamagedCheckpointError(f"{where} is damaged: its sha256 differs from the manifest's")


def open_newest(
    store: CheckpointStore,
    ranks: Ranks,
    extents: Callable[[], Iterable[Extent]],
    accept: Callable[[Manifest], None],
    damaged: Callable[[str], None],
) -> CheckpointReader | None:
    """The newest checkpoint, of which each rank has read its `extents` and all ranks together have checked every byte.

    A damaged one is put aside as `damaged-step-…`, reported through `damaged`, and the one before it is tried. `accept`
    raises for a checkpoint that is whole but not this run's; what any rank raises is raised on every rank.
    """
    # Listed by rank 0 alone: ranks that saw different steps would try different checkpoints, and hang.
    for step in reversed(ranks.from_leader(store.steps())):
        reader, error = _try_open(store.at(step), ranks, extents, accept)
        # Every rank reads other blocks: what one finds damaged, all must leave. The gather is also the barrier after
        # which no rank reads the files of a checkpoint that is put aside.
        errors = [found for found in ranks.gather(error) if found is not None]
        if not errors:
            return reader
        if reader is not None:
            reader.close()
        for found in errors:
            if not isinstance(found, DamagedCheckpointError):
                raise found  # on every rank: an older checkpoint would not mend another recipe or an unreadable disk
        if ranks.leads:
            damaged(f"{errors[0]}; put aside as {store.put_aside(step)}, trying the checkpoint before it")
        ranks.sum([0.0])  # nobody looks at the folder again before it is renamed
    if ranks.from_leader(store.damaged()):
        # Starting over in silence would throw the whole run away.
        raise CheckpointError(
            f"every checkpoint in {store.where} is damaged (kept as damaged-step-…): "
            "restore one from a backup; to start over, use another run.name or remove the run's folder"
        )
    return None


def _try_open(
    folder: CheckpointFolder,
    ranks: Ranks,
    extents: Callable[[], Iterable[Extent]],
    accept: Callable[[Manifest], None],
) -> tuple[CheckpointReader | None, StokerError | None]:
    try:
        manifest = read_manifest(folder)
        check_coverage(manifest)
        accept(manifest)
    except StokerError as error:
        return None, error
    reader = CheckpointReader(folder, manifest)
    try:
        # Heads of files by turns: no rank's extents cover them, and all ranks together are to check every byte.
        reader.fetch(extents(), [stored.name for stored in manifest.files[ranks.rank :: ranks.world]])
    except StokerError as error:
        reader.close()
        return None, error
    return reader, None


def check_model(engine: Engine, manifest: Manifest) -> None:
    """Raises CheckpointError with the first difference when the checkpoint holds another model."""
    stored = {name: tuple(shape) for name, shape in manifest.parameters.items()}
    wanted = engine.parameter_shapes()
    differing = sorted(name for name in stored | wanted if stored.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"checkpoint step {manifest.step} holds another model: {name} is {stored.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} in the recipe ({len(differing)} parameters differ)"
        )


def restore(engine: Engine, reader: CheckpointReader) -> None:
    """Fill the engine from a checkpoint that `open_newest` gave, on every rank. Raises CheckpointError, EngineError."""
    engine.load(reader.read, reader.buffers(), Scalars(**reader.manifest.scalars))
