"""Tasks that each make one shard, run one after the other here or side by side in processes."""

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any

from data.index.shard_index import load_index
from data.pack.pack_manifest import ShardRecord
from data.pack.pack_plan import LeftOut, LeftOuts, PackJob, Sample
from data.pack.partial_folder import WorkFolder
from data.pack.shard_writer import Parts, write_shard
from data.shards.local_shard import LocalShard

REPORT_S = 0.1
_QUEUED = 2  # shards per worker, so that none waits

Advance = Callable[[], None]  # called after each input


@dataclass(frozen=True)
class PackTask:
    """One shard to make."""

    work: WorkFolder
    name: str
    split: str
    job: PackJob

    def run(self, advance: Advance) -> ShardRecord:
        """Write the shard, then its record."""
        reading = _CountedSamples(self.job, advance)
        path = self.work.shards / self.name
        shard = write_shard(path, reading.samples())
        if shard.samples:
            load_index(LocalShard(path))  # kept beside the shard, so that training starts at once
        record = ShardRecord(
            name=self.name,
            split=self.split,
            bytes=shard.bytes,
            samples=shard.samples,
            tokens=reading.tokens,
            sha256=shard.sha256,
            parts=sorted(reading.parts),
            left_out=reading.left_out,
        )
        self.work.save_record(record)
        return record


class _CountedSamples:
    """Counts what a job gives."""

    def __init__(self, job: PackJob, advance: Advance) -> None:
        self._job = job
        self._advance = advance
        self.left_out = LeftOuts()
        self.parts: set[str] = set()
        self.tokens = 0

    def samples(self) -> Iterator[tuple[str, Parts]]:
        """Keys and parts of the job's samples, counted as they pass."""
        for found in self._job.samples():
            self._advance()
            if isinstance(found, LeftOut):
                self.left_out.add(found)
            else:
                self._count(found)
                yield found.key, found.parts

    def _count(self, sample: Sample) -> None:
        self.tokens += sample.tokens
        self.parts.update(sample.parts)


def run_in_this_process(tasks: Iterator[PackTask], report: Callable[[int], None]) -> Iterator[ShardRecord]:
    """One shard after the other in this process."""
    read, seen = 0, time.monotonic()

    def advance() -> None:
        nonlocal read, seen
        read += 1
        if time.monotonic() - seen > REPORT_S:
            seen = time.monotonic()
            report(read)

    for task in tasks:
        yield task.run(advance)


def run_in_processes(tasks: Iterator[PackTask], workers: int, report: Callable[[int], None]) -> Iterator[ShardRecord]:
    """Records in the order in which shards are finished."""
    # Spawned, not forked: tokenizers and pyarrow have threads.
    context = get_context("spawn")
    read, stop = context.Value("q", 0), context.RawValue(ctypes.c_bool, False)
    with ProcessPoolExecutor(workers, context, _start_worker, (read, stop)) as pool:
        waiting: set[Future[ShardRecord]] = set()
        try:
            while True:
                with _ctrl_c_blocked():
                    waiting.update(
                        pool.submit(_run_task, task) for task in islice(tasks, workers * _QUEUED - len(waiting))
                    )
                if not waiting:
                    return
                done, waiting = wait(waiting, REPORT_S, FIRST_COMPLETED)
                yield from [future.result() for future in done]
                report(read.value)
        except BaseException:
            # A worker looks at this between two inputs; else it would end its shard, which may take minutes.
            stop.value = True
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C: their parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_advance: Advance | None = None


def _start_worker(read: Any, stop: Any) -> None:
    global _advance

    def advance() -> None:
        with read.get_lock():
            read.value += 1
        if stop.value:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    _advance = advance
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run_task(task: PackTask) -> ShardRecord:
    assert _advance is not None
    return task.run(_advance)
