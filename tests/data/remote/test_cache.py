"""The cache shared by the processes of a node: right whatever happens to files, processes and the disk."""

import errno
import fcntl
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from configs.sections.data_section import RemoteReads
from data.remote import file_locks, piece_file, shared_connections
from data.remote.byte_checks import PIECE_BYTES
from data.remote.disk_cache import DiskCache, PieceKey
from data.remote.remote_shard import open_remote
from tests.support.data.hostile_server import HostileServer
from tests.support.data.shard_contents import checksums_of, contents_of

Serve = Callable[..., HostileServer]
Reads = Callable[..., RemoteReads]

CONTENTS = contents_of(12 * PIECE_BYTES + 777)
FILE_BYTES = piece_file.file_bytes(PIECE_BYTES)
_SPAWN = get_context("spawn")


def pieces_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if "-" in path.name]


def used_bytes(folder: Path) -> int:
    """Of all files, at a moment when nobody adds or evicts one."""
    with file_locks.locked_range(folder / "locks", 0, 1, 200.0) as alone:
        assert alone
        sizes = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # renamed, or damaged and removed by its reader
                sizes.append(path.stat().st_size)
        return sum(sizes)


def read_at_random(url: str, settings: RemoteReads, seed: int, count: int, told: Path | None = None) -> None:
    """Until `count` reads are done or `told` is there; ends with exit code 0 only if every byte was right."""
    shared_connections.MEMORY_BYTES = PIECE_BYTES  # so that the cache is what is read
    shard = open_remote(url, settings)
    shard.expect(checksums_of(CONTENTS))
    draw = random.Random(seed)
    for _ in range(count):
        if told and told.exists():
            return
        offset = draw.randrange(len(CONTENTS))
        size = min(draw.randrange(50_000), len(CONTENTS) - offset)
        assert shard.read(offset, size) == CONTENTS[offset : offset + size]


@pytest.fixture
def processes() -> Iterator[Callable[..., BaseProcess]]:
    started: list[BaseProcess] = []

    def start(*arguments: Any) -> BaseProcess:
        process = _SPAWN.Process(target=read_at_random, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_kills_and_damage_at_random_moments_cost_neither_a_byte_nor_the_limit(
    serve: Serve, reads: Reads, processes: Callable[..., BaseProcess], tmp_path: Path
) -> None:
    server = serve({"a.tar": CONTENTS})
    settings = reads(cache_bytes=5 * FILE_BYTES)
    folder, draw, enough = Path(str(settings.cache_dir)), random.Random(0), tmp_path / "enough"
    folder.mkdir()
    readers = [processes(server.url("a.tar"), settings, seed, 1_000_000, enough) for seed in range(2)]
    victim = processes(server.url("a.tar"), settings, 100, 1_000_000)
    most, kills, damaged = 0, 0, 0
    while kills < 12 or damaged < 60:
        assert all(reader.is_alive() for reader in readers)
        time.sleep(draw.uniform(0.01, 0.1))
        most = max(most, used_bytes(folder))
        damaged += _damage(folder, draw)
        if server.requests["a.tar"] > 60 * (kills + 1) and victim.is_alive():
            victim.kill()
            victim.join()
            kills += 1
            victim = processes(server.url("a.tar"), settings, 100 + kills, 1_000_000)
    victim.kill()
    enough.touch()
    for process in (victim, *readers):
        process.join()
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert 3 * FILE_BYTES < most <= 5 * FILE_BYTES + 8  # and the counter
    last = processes(server.url("a.tar"), settings, 7, 50)
    last.join()
    assert last.exitcode == 0
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []


def _damage(folder: Path, draw: random.Random) -> int:
    """Flip a bit of a piece, or cut it."""
    files = pieces_in(folder)
    if not files:
        return 0
    try:
        with draw.choice(files).open("r+b") as file:
            place = draw.randrange(FILE_BYTES // 2)
            if draw.random() < 0.3:
                file.truncate(place)
                return 1
            file.seek(place)
            found = file.read(1)
            file.seek(place)
            file.write(bytes([found[0] ^ 1]) if found else b"")
    except FileNotFoundError:
        return 0
    return 1


def test_a_leftover_of_a_killed_writer_is_removed_and_a_living_writers_file_is_not(tmp_path: Path) -> None:
    dead, living = tmp_path / ".dead.tmp", tmp_path / ".living.tmp"
    dead.write_bytes(b"x" * 1000)
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        DiskCache(tmp_path, 10 * FILE_BYTES).write(PieceKey(1, 0), memoryview(CONTENTS)[:PIECE_BYTES])
        assert living.exists()
    assert not dead.exists()


def test_the_pieces_used_least_recently_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * FILE_BYTES)
    payload = memoryview(CONTENTS)[:PIECE_BYTES]
    for number in range(10):
        cache.write(PieceKey(1, number), payload)
        long_ago = time.time() - 10_000 + number
        os.utime(tmp_path / PieceKey(1, number).file_name, (long_ago, long_ago))
    assert cache.read(PieceKey(1, 0), PIECE_BYTES, 5, 10) == CONTENTS[5:10]
    cache.write(PieceKey(1, 10), payload)
    assert [number for number in range(11) if cache.holds(PieceKey(1, number))] == [0, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("place", [0, 9, 20, 5_000, FILE_BYTES - 1])
def test_any_flipped_byte_of_a_file_is_refused(tmp_path: Path, place: int) -> None:
    cache, piece = DiskCache(tmp_path, 10 * FILE_BYTES), PieceKey(77, 3)
    cache.write(piece, memoryview(CONTENTS)[:PIECE_BYTES])
    path = tmp_path / piece.file_name
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    assert cache.read(piece, PIECE_BYTES, 0, PIECE_BYTES) is None
    assert not path.exists()


def test_a_file_under_another_pieces_name_is_refused(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10 * FILE_BYTES)
    cache.write(PieceKey(77, 3), memoryview(CONTENTS)[:PIECE_BYTES])
    (tmp_path / PieceKey(77, 3).file_name).rename(tmp_path / PieceKey(77, 4).file_name)
    assert cache.read(PieceKey(77, 4), PIECE_BYTES, 0, 100) is None


def test_two_processes_that_want_the_same_pieces_download_them_once(
    serve: Serve, reads: Reads, processes: Callable[..., BaseProcess]
) -> None:
    server = serve({"a.tar": CONTENTS})
    both = [processes(server.url("a.tar"), reads(timeout_s=30.0), seed, 400) for seed in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(server.ranges) == sorted(set(server.ranges))
    assert sum(stop - start for start, stop in server.ranges) == len(CONTENTS)


def test_a_stopped_holder_of_the_locks_does_not_stop_the_others(
    serve: Serve, reads: Reads, processes: Callable[..., BaseProcess]
) -> None:
    release, held = threading.Event(), threading.Event()

    def hang_first(answer: object, draw: object) -> None:
        if not held.is_set():
            held.set()
            release.wait(200.0)

    server = serve({"a.tar": CONTENTS}, hang_first, share=1.0)
    stopped = processes(server.url("a.tar"), reads(timeout_s=60.0), 3, 1_000_000)
    assert held.wait(200.0)
    os.kill(int(stopped.pid or 0), signal.SIGSTOP)
    release.set()
    other = processes(server.url("a.tar"), reads(timeout_s=0.5), 3, 100)
    other.join(200.0)
    assert other.exitcode == 0


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written_costs_one_warning(
    serve: Serve, reads: Reads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: int
) -> None:
    def full(descriptor: int, size: int) -> None:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(os, "ftruncate", full)
    shard = open_remote(serve({"a.tar": CONTENTS}).url("a.tar"), reads())
    with caplog.at_level(logging.WARNING):
        assert b"".join(shard.stream()) == CONTENTS
    assert [record.getMessage() for record in caplog.records if os.strerror(failure) in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_a_cache_folder_that_is_a_file_costs_one_warning(
    serve: Serve, reads: Reads, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    shard = open_remote(serve({"a.tar": CONTENTS}).url("a.tar"), reads(cache_dir=str(tmp_path / "file")))
    assert b"".join(shard.stream()) == CONTENTS
    assert len(caplog.records) == 1


def test_a_forked_process_reads_with_connections_of_its_own(serve: Serve, reads: Reads) -> None:
    server = serve({"a.tar": CONTENTS})
    shard = open_remote(server.url("a.tar"), reads())
    assert shard.read(0, 10) == CONTENTS[:10]
    child = os.fork()
    if child == 0:
        os._exit(0 if shard.read(7 * PIECE_BYTES, 100) == CONTENTS[7 * PIECE_BYTES :][:100] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
