"""The ways to save and load the same ZeRO state that benchmarks/checkpoint/__main__.py compares; run on every rank."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint.state_dict_saver as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.recipe import Recipe
from configs.sections.model_section import GptModel
from data.batch import MicroBatch
from trainer.checkpoint.block_files import BLOCK_BYTES, BlockFile, host_memory, write_file
from trainer.checkpoint.folder_store import FolderStore
from trainer.checkpoint.reader import open_newest, restore
from trainer.checkpoint.writer import CheckpointWriter
from trainer.engine.deepspeed_engine import DeepSpeedEngine
from trainer.rank.context import Context
from trainer.rank.ranks import Ranks
from trainer.tasks.build_task import build_task
from trainer.training.resume import header

NATIVE, DCP_SYNC, DCP_ASYNC, STOKER = "DeepSpeed save_checkpoint", "torch DCP save", "torch DCP async_save", "Stoker"
RAW, RAW_DIRECT, RAW_HASH = "raw write + fsync", "raw direct write + fsync", "raw read + sha256"
ORDER = (NATIVE, RAW, STOKER, DCP_SYNC, RAW_DIRECT, DCP_ASYNC)


@dataclass
class CheckpointFigures:
    """Seconds and bytes of one way in one round: of the slowest rank, except bytes, which are all ranks'."""

    stall_s: float = 0.0
    total_s: float = 0.0
    load_s: float = 0.0
    written_bytes: float = 0.0
    state_bytes: float = 0.0
    memory_bytes: float = 0.0

    def encode(self) -> list[float]:
        """In the order of the constructor, to be gathered over ranks."""
        return list(vars(self).values())


Rounds = list[dict[str, CheckpointFigures]]


@dataclass
class CheckpointBench:
    """One engine with a state worth saving, and a folder to save it to."""

    folder: Path
    engine: DeepSpeedEngine
    ranks: Ranks
    context: Context
    own_bytes: int = 0
    group: Any = None
    stager: Any = None
    writer: CheckpointWriter | None = None
    seconds: list[float] = field(default_factory=list)

    def barrier(self) -> None:
        """Wait for every rank (collective)."""
        self.ranks.sum([0.0])


def measure(recipe: Recipe, folder: Path, rounds: int) -> Rounds:
    """`rounds` of every way, in one process group."""
    bench = _prepare(recipe, folder)
    result = []
    for number in range(rounds):
        figures = {}
        for way in ORDER:
            place = folder / f"{way.replace(' ', '-')}-{number}"
            bench.barrier()
            found = _WAYS[way](bench, place)
            bench.barrier()
            figures[way] = _over_ranks(bench, found)
            if bench.ranks.leads:
                shutil.rmtree(place, ignore_errors=True)
                os.sync()  # the next way starts with a disk at rest
            bench.barrier()
        result.append(figures)
    bench.stager.close()
    bench.engine.close()
    return result


def _over_ranks(bench: CheckpointBench, figures: CheckpointFigures) -> CheckpointFigures:
    everyone = bench.ranks.gather(figures.encode())
    slowest = CheckpointFigures(*(max(values) for values in zip(*everyone, strict=True)))
    slowest.written_bytes = sum(values[3] for values in everyone)
    slowest.state_bytes = sum(values[4] for values in everyone)
    return slowest


def _prepare(recipe: Recipe, folder: Path) -> CheckpointBench:
    ranks = Ranks.connect()
    run = RunFolder(folder / f"run-{recipe.zero.stage}")
    run.make()
    context = Context(recipe, run, Ledger(run.ledger), ranks, 1, "bench")
    engine = DeepSpeedEngine(build_task(recipe), context)
    batch = _batch(recipe, ranks.rank)
    for step in (1, 2):  # moments exist from the first step on
        engine.train_step([batch], step, float(ranks.world * batch.targets), 1e-3)
    own_bytes = sum(f.tensor.numel() * 4 for f in engine.fragments())
    group = torch.distributed.new_group(backend="gloo")  # on the default group async_save deadlocks
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    return CheckpointBench(folder, engine, ranks, context, own_bytes, group, DefaultStager(options))


def _batch(recipe: Recipe, rank: int) -> MicroBatch:
    assert isinstance(recipe.model, GptModel)
    tokens = np.random.default_rng(rank).integers(0, 256, (1, recipe.model.context))
    arrays = {"tokens_BT": tokens, "targets_BT": tokens}
    return MicroBatch(step=1, index=rank, arrays=arrays, samples=1, targets=tokens.size, keys=[], skipped=[])


def _native(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    engine = bench.engine._engine
    with _PeakMemory() as peak:
        stall = _timed(lambda: engine.save_checkpoint(str(place), tag="tag"))
    written = _bytes_under(place) if bench.ranks.leads else 0
    bench.barrier()
    _drop_from_page_cache(place)
    bench.barrier()
    load = _timed(lambda: engine.load_checkpoint(str(place), tag="tag"))
    return CheckpointFigures(stall, stall, load, written, bench.own_bytes, peak.bytes)


def _state(bench: CheckpointBench) -> dict[str, torch.Tensor]:
    rank = bench.ranks.rank
    return {f"{rank}/{f.kind}/{f.parameter}/{f.start}": f.tensor for f in bench.engine.fragments()}


def _dcp_sync(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    writer = FileSystemWriter(place)
    with _PeakMemory() as peak:
        stall = _timed(lambda: dcp.save(_state(bench), storage_writer=writer, process_group=bench.group))
    return CheckpointFigures(stall, stall, 0.0, _own_share(bench, place), bench.own_bytes, peak.bytes)


def _dcp_async(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    started = time.perf_counter()
    with _PeakMemory() as peak:
        future: Any = dcp.async_save(
            _state(bench),
            storage_writer=FileSystemWriter(place),
            process_group=bench.group,
            async_stager=bench.stager,
        )
        stall = time.perf_counter() - started
        future.result()
    total = time.perf_counter() - started
    return CheckpointFigures(stall, total, 0.0, _own_share(bench, place), bench.own_bytes, peak.bytes)


def _own_share(bench: CheckpointBench, place: Path) -> float:
    bench.barrier()
    return _bytes_under(place) if bench.ranks.leads else 0


def _stoker(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    store = FolderStore(place)
    if bench.writer is None:
        bench.writer = CheckpointWriter(
            store,
            bench.context.folder.checkpoints,
            bench.ranks,
            bench.context.recipe.checkpoint,
            superseded=lambda: False,
            published=lambda manifest, stall, seconds: bench.seconds.append(seconds),
            warn=print,
        )
    writer = bench.writer
    writer._store = store
    manifest = header(bench.context, bench.engine, "", 2, 0)
    bench.seconds.clear()
    with _PeakMemory() as peak:
        stall = _timed(lambda: writer.save(bench.engine, manifest))
        error = writer.wait()
    if error is not None:
        raise error
    bench.barrier()
    written = _bytes_under(place) if bench.ranks.leads else 0
    total = stall + (bench.seconds[0] if bench.seconds else 0.0)
    _drop_from_page_cache(place)
    bench.barrier()

    def load() -> None:
        reader = open_newest(store, bench.ranks, bench.engine.extents, lambda manifest: None, print)
        assert reader is not None
        with reader:
            restore(bench.engine, reader)

    return CheckpointFigures(stall, total, _timed(load), written, bench.own_bytes, peak.bytes)


def _raw(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    """The same bytes from memory to one file per rank; then back, through sha256, from a cold cache."""
    place.mkdir(exist_ok=True)
    image = host_memory(bench.own_bytes)[: bench.own_bytes]
    path = place / f"{bench.ranks.rank}"
    bench.barrier()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(image), BLOCK_BYTES):
                file.write(image[start : start + BLOCK_BYTES])
            os.fsync(file.fileno())

    total = _timed(write)
    bench.barrier()
    _drop_from_page_cache(place)
    bench.barrier()

    def read() -> None:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            for start in range(0, len(image), BLOCK_BYTES):
                piece = image[start : start + BLOCK_BYTES]
                file.readinto(piece)
                digest.update(piece)

    return CheckpointFigures(0.0, total, _timed(read), bench.own_bytes, bench.own_bytes)


def _raw_direct(bench: CheckpointBench, place: Path) -> CheckpointFigures:
    place.mkdir(exist_ok=True)
    image = host_memory(bench.own_bytes)
    path = place / f"{bench.ranks.rank}"
    bench.barrier()
    total = _timed(lambda: write_file(path, image[: bench.own_bytes]))
    bench.barrier()

    def read() -> None:
        file, digest = BlockFile(path), hashlib.sha256()
        for start in range(0, bench.own_bytes, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, bench.own_bytes)
            file.read_into(start, image[start : start + BLOCK_BYTES], stop - start)
            digest.update(image[start:stop])
        file.close()

    return CheckpointFigures(0.0, total, _timed(read), bench.own_bytes, bench.own_bytes)


_WAYS: dict[str, Callable[[CheckpointBench, Path], CheckpointFigures]] = {
    NATIVE: _native,
    DCP_SYNC: _dcp_sync,
    DCP_ASYNC: _dcp_async,
    STOKER: _stoker,
    RAW: _raw,
    RAW_DIRECT: _raw_direct,
}


def _timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _bytes_under(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _drop_from_page_cache(place: Path) -> None:
    """Drop the files from the page cache, so that a load reads the medium."""
    for path in place.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class _PeakMemory:
    """Growth of this process's resident memory at its highest, over what it was on entry."""

    bytes = 0

    def __enter__(self) -> "_PeakMemory":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = max(_status_bytes("VmHWM") - self._before, 0)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
