"""Reads of local shards: exact, checked, and never of another file than was indexed."""

from configs.checkout import CHECKOUT
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.shards import local_shard
from data.shards.local_shard import LocalShard
from data.shards.shard import CHECKED_BYTES, Checksums, Stat
from data.index.shard_index import build_index
from data.verify.verify_checksums import checksums_of

SHARD_BYTES = 5 * CHECKED_BYTES + 777


@pytest.fixture
def contents() -> bytes:
    return random.Random(0).randbytes(SHARD_BYTES)


@pytest.fixture
def path(tmp_path: Path, contents: bytes) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(contents)
    return path


def _expecting(path: Path) -> LocalShard:
    """A shard that expects what the file holds now."""
    shard = LocalShard(path)
    shard.expect(Checksums(shard.stat(), checksums_of(shard)))
    return shard


def _descriptors(folder: Path) -> int:
    """Of files in `folder`, also of those removed since: what other tests leave open comes and goes."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            links.append(os.readlink(entry))  # noqa: PTH115  # a Path would resolve "(deleted)"
    return sum(link.startswith(f"{folder}/") for link in links)


def _mapped(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def _overwrite(path: Path, place: int, found: bytes) -> None:
    """Change bytes as a bad disk does: neither size nor time tell."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(found)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _flip(path: Path, place: int) -> None:
    _overwrite(path, place, bytes([path.read_bytes()[place] ^ 0x40]))


def test_any_range_is_read_exactly(path: Path, contents: bytes) -> None:
    random_ = random.Random(1)
    cuts = [0, 1, CHECKED_BYTES - 1, CHECKED_BYTES, 2 * CHECKED_BYTES + 1, SHARD_BYTES - 1, SHARD_BYTES]
    cuts += [random_.randrange(SHARD_BYTES) for _ in range(30)]
    for shard in (LocalShard(path), _expecting(path)):
        for start in cuts:
            for stop in (stop for stop in cuts if stop >= start):
                view = shard.view(start, stop - start)
                assert view.readonly and view == contents[start:stop] == shard.read(start, stop - start)
    assert b"".join(LocalShard(path).stream()) == contents


def test_a_flipped_byte_anywhere_is_found_by_every_read_of_its_block_and_by_no_other(
    path: Path, contents: bytes
) -> None:
    places = [0, CHECKED_BYTES - 1, CHECKED_BYTES, SHARD_BYTES - 1, *random.Random(2).sample(range(SHARD_BYTES), 8)]
    for number, place in enumerate(places):
        shard = _expecting(path)
        read = (shard.read, shard.view)[number % 2]
        _flip(path, place)
        block = place // CHECKED_BYTES * CHECKED_BYTES
        end = min(block + CHECKED_BYTES, SHARD_BYTES)
        for start in (block, end - 1, max(block - 10, 0)):  # mostly without the byte itself
            for _ in range(2):
                with pytest.raises(DataError, match=rf"a\.tar: bytes {block} to .* not those that were indexed"):
                    read(start, min(20, SHARD_BYTES - start))
        with pytest.raises(DataError, match="copy the shard again"):
            read(0, SHARD_BYTES)
        other = 0 if block else CHECKED_BYTES
        assert read(other, 100) == contents[other : other + 100]
        _overwrite(path, place, contents[place : place + 1])
        assert read(block, 20) == contents[block : block + 20]  # repaired


def test_a_block_is_checked_once(path: Path, contents: bytes) -> None:
    shard = _expecting(path)
    shard.read(CHECKED_BYTES, 10)
    _flip(path, CHECKED_BYTES + 5000)
    assert shard.read(CHECKED_BYTES, 10) == contents[CHECKED_BYTES : CHECKED_BYTES + 10]


def test_a_file_replaced_or_cut_after_it_was_indexed_is_refused(path: Path) -> None:
    shard = _expecting(path)
    shard.read(0, 10)
    os.truncate(path, 100)
    with pytest.raises(DataError, match=r"a\.tar: the shard changed after it was indexed"):
        shard.read(50, 100)
    path.write_bytes(bytes(SHARD_BYTES))
    for blocks in (shard._blocks, np.empty(0, np.uint64)):  # without blocks, size and time are compared all the same
        shard.expect(Checksums(shard._expected or shard.stat(), blocks))
        with pytest.raises(DataError, match=r"a\.tar: the shard changed after it was indexed"):
            shard.read(0, 10)
    path.unlink()
    shard.close()
    for read in (lambda: shard.read(0, 10), lambda: next(shard.stream()), shard.stat):
        with pytest.raises(DataError, match=r"a\.tar: cannot be read \(No such file or directory\)"):
            read()


def test_reading_past_the_end_is_refused(path: Path) -> None:
    for start, size in ((SHARD_BYTES - 5, 6), (SHARD_BYTES + CHECKED_BYTES, 1)):
        for read in (LocalShard(path).read, LocalShard(path).view):
            with pytest.raises(DataError, match=r"a\.tar: the file ends too early"):
                read(start, size)
        with pytest.raises(DataError, match=r"a\.tar: the shard changed after it was indexed"):
            _expecting(path).view(start, size)
    path.write_bytes(b"")
    assert LocalShard(path).view(0, 0) == b""


_TRUNCATION = """
import os, sys
from configs.errors import DataError
from data.shards.local_shard import LocalShard
from data.shards.shard import CHECKED_BYTES, Checksums
from data.verify.verify_checksums import checksums_of
path, first_touch, verify = sys.argv[1], sys.argv[2] == "before", sys.argv[3] == "checked"
shard, wanted = LocalShard(path), (4 * CHECKED_BYTES, 20_000)
shard.expect(Checksums(shard.stat(), checksums_of(shard)[: None if verify else 0]))
shard.view(0, 10)  # maps the whole file
if not first_touch:
    bytes(shard.view(*wanted))
os.truncate(path, CHECKED_BYTES)
try:
    print(len(bytes(shard.view(*wanted))))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("touched", "reads", "code"),
    [("before", "checked", 0), ("after", "checked", -signal.SIGBUS), ("before", "unchecked", -signal.SIGBUS)],
)
def test_a_file_cut_short_while_mapped_is_told_before_its_bytes_are_known_good_and_kills_after(
    path: Path, touched: str, reads: str, code: int
) -> None:
    command = [sys.executable, "-c", _TRUNCATION, str(path), touched, reads]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == code, done.stderr
    assert ("a.tar: the shard changed after it was indexed" in done.stdout) == (code == 0)
    shard = LocalShard(path)  # as the process that is started again
    shard.expect(Checksums(Stat(SHARD_BYTES, shard.stat().version), np.empty(0, np.uint64)))
    with pytest.raises(DataError, match=r"a\.tar: the shard changed after it was indexed"):
        shard.view(0, 10)


def test_views_outlive_their_shard_its_eviction_and_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shard, "_OPEN", local_shard._OpenFiles(4))
    shards, views = [], []
    for i in range(30):
        path = tmp_path / f"{i}.tar"
        path.write_bytes(b"%02d" % i * 5000)
        shards.append(LocalShard(path))
        views.append(shards[i].view(8192, 1000))
    assert _mapped(tmp_path) == 30 and 30 <= _descriptors(tmp_path) <= 30 + 4
    for i, shard in enumerate(shards):
        shard.close()
        new = tmp_path / "new"
        new.write_bytes(b"changed")
        new.rename(tmp_path / f"{i}.tar")
    assert all(bytes(view) == b"%02d" % i * 500 for i, view in enumerate(views))
    views.clear()
    assert _mapped(tmp_path) == 0 and _descriptors(tmp_path) == 0
    for _ in range(3):
        assert [bytes(shard.view(0, 7)) for shard in shards] == [b"changed"] * 30  # one at a time: only the open stay
    assert 1 <= _mapped(tmp_path) <= 4 and 1 <= _descriptors(tmp_path) <= 2 * 4


def test_open_files_are_bounded_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_shard, "_OPEN", local_shard._OpenFiles(4))
    shards = []
    for i in range(20):
        (tmp_path / f"{i}.tar").write_bytes(b"%02d" % i)
        shards.append(LocalShard(tmp_path / f"{i}.tar"))
    for turn in range(5):
        for i, shard in enumerate(shards):
            assert shard.read(0, 2) == b"%02d" % i
            assert shards[0].read(0, 2) == b"00"
            assert 1 <= _descriptors(tmp_path) <= 4, turn
    for shard in shards:
        shard.close()
    assert _descriptors(tmp_path) == 0


def test_a_file_in_use_is_not_dropped_for_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_shard, "_OPEN", local_shard._OpenFiles(3))
    shards = []
    for i in range(10):
        (tmp_path / f"{i}.tar").write_bytes(b"x")
        shards.append(LocalShard(tmp_path / f"{i}.tar"))
    busy, files = shards[0], []
    for shard in shards[1:]:
        busy.read(0, 1)
        files.append(busy._file)
        shard.read(0, 1)
    assert len(set(map(id, files))) <= 2  # when all are in use, the oldest goes


def test_threads_share_a_shard_while_files_come_and_go(
    tmp_path: Path, make_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_shard, "_OPEN", local_shard._OpenFiles(2))
    shards, wholes = [], []
    for i in range(4):
        path = make_shard(tmp_path / f"{i}.tar", {"k": {"bin": random.Random(i).randbytes(600_000)}})
        shards.append(LocalShard(path))
        wholes.append(path.read_bytes())
        shards[i].expect(build_index(shards[i]).checksums)
    wrong = []

    def read(seed: int) -> None:
        random_ = random.Random(seed)
        for _ in range(400):
            i, start = random_.randrange(4), random_.randrange(600_000)
            read = random_.choice((shards[i].read, shards[i].view))
            if read(start, 1000) != wholes[i][start : start + 1000]:
                wrong.append((i, start))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_lies_beside_a_shard_is_read(path: Path) -> None:
    path.with_name("a.tar.idx").write_bytes(b"12345678")
    path.with_name("a.tar.folder").mkdir()
    shard = LocalShard(path)
    assert shard.beside(".idx") == b"12345678"
    assert shard.beside(".none") is None and shard.beside(".folder") is None
