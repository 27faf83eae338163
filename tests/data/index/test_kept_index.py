"""Indexes that are kept: trusted while the shard is the same, built once by many processes, never wrong."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.index import shard_index, sidecar
from data.index.npz_map import map_npz, parse_npz, write_npz
from data.index.open_catalog import load_indexes, open_catalog
from data.index.shard_index import ShardIndex, build_index, load_index, read_kept_index
from data.shards.local_shard import LocalShard
from data.shards.shard import CHECKED_BYTES, Checksums, Stat

MakeShard = Callable[..., Path]


def _same(a: ShardIndex, b: ShardIndex) -> None:
    for name in ("key_blob", "key_offsets", "part_offsets", "part_sizes", "group_bytes", "part_counts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.checksums.blocks, b.checksums.blocks)
    assert (a.part_names, a.digest, a.checksums.stat) == (b.part_names, b.digest, b.checksums.stat)


def _sidecar(shard: Path) -> Path:
    return shard.with_name(shard.name + ".stoker-idx.npz")


def _no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("the shard is read although its index is kept")

    monkeypatch.setattr(shard_index, "build_index", refuse)


def test_a_kept_index_equals_a_new_one_and_is_mapped(text_shards: list[Path]) -> None:
    load_index(LocalShard(text_shards[2]))
    kept = read_kept_index(LocalShard(text_shards[2]))
    assert kept is not None
    _same(kept, build_index(LocalShard(text_shards[2])))
    for array in (kept.key_blob, kept.part_offsets, kept.checksums.blocks):
        assert not array.flags.owndata and not array.flags.writeable and array.ctypes.data % 64 == 0


def test_numpy_reads_the_same_file(tmp_path: Path) -> None:
    arrays = {
        "bytes": np.arange(99, dtype=np.uint8),
        "table": np.arange(12).reshape(3, 4),
        "names": np.array(["a", "ünï"]),
        "text": np.array("one"),
        "none": np.zeros((2, 0), np.int64),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    with (tmp_path / "a.npz").open("wb") as file:
        write_npz(file, arrays)
    mapped = map_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        assert list(mapped) == list(arrays) == theirs.files
        for name, array in arrays.items():
            assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(mapped[name], array)
            np.testing.assert_array_equal(theirs[name], array)


def test_every_flipped_byte_of_a_sidecar_costs_a_rebuild_and_nothing_else(text_shards: list[Path]) -> None:
    shard = LocalShard(text_shards[1])
    expected, path = load_index(shard), _sidecar(text_shards[1])
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        with pytest.raises(ValueError):
            parse_npz(flipped)
        if place % 40 == 0:
            path.write_bytes(flipped)
            assert read_kept_index(shard) is None
    for cut in (0, 1, 16, 700, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_kept_index(shard) is None
    _same(load_index(shard), expected)
    assert path.read_bytes() == whole


def test_an_index_of_another_version_is_built_again(text_shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shard = LocalShard(text_shards[0])
    monkeypatch.setattr(shard_index, "VERSION", shard_index.VERSION + 1)
    load_index(shard)
    monkeypatch.undo()
    assert read_kept_index(shard) is None
    assert load_index(shard).count == 40 and read_kept_index(shard) is not None


def test_a_changed_shard_is_indexed_again(tmp_path: Path, make_shard: MakeShard) -> None:
    shard = make_shard(tmp_path / "a.tar", {"old": {"txt": b"1"}})
    assert load_index(LocalShard(shard)).key(0) == "old"
    make_shard(shard, {"new": {"txt": b"1"}})
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))  # same size, and a coarse clock may give the same time
    said: list[str] = []
    assert load_index(LocalShard(shard), said.append).key(0) == "new" and not said


def test_a_shard_copied_with_its_index_keeps_it(
    tmp_path: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_shard(tmp_path / "a.tar", {"k": {"txt": b"1"}})
    expected = load_index(LocalShard(first))
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (first, _sidecar(first)):
        shutil.copyfile(path, copy / path.name)
    said: list[str] = []
    found = load_index(LocalShard(copy / "a.tar"), said.append)
    assert found.digest == expected.digest and not said
    assert found.checksums.stat == LocalShard(copy / "a.tar").stat()
    _no_building(monkeypatch)
    load_index(LocalShard(copy / "a.tar"))


def test_changed_contents_under_the_same_headers_are_told_loudly(tmp_path: Path, make_shard: MakeShard) -> None:
    text = bytes(3 * CHECKED_BYTES)
    shard = make_shard(tmp_path / "a.tar", {"k": {"txt": text}})
    load_index(LocalShard(shard))
    make_shard(shard, {"k": {"txt": text[:-1] + b"x"}})
    os.utime(shard, ns=(0, 1))
    said: list[str] = []
    load_index(LocalShard(shard), said.append)
    assert len(said) == 1 and f"{shard}: the contents of 1 of 4 blocks" in said[0]


def test_an_index_goes_to_the_cache_when_the_folder_cannot_hold_it(text_shards: list[Path]) -> None:
    _sidecar(text_shards[0]).mkdir()  # stands in for a read-only folder, which root can write to
    load_index(LocalShard(text_shards[0]))
    assert list(Path(os.environ["XDG_CACHE_HOME"]).glob("stoker/index/*.stoker-idx.npz"))
    assert read_kept_index(LocalShard(text_shards[0])) is not None


def test_without_a_place_to_keep_it_the_index_is_built_and_that_is_said(
    text_shards: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _sidecar(text_shards[0]).mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    assert load_index(LocalShard(text_shards[0]), said.append).count == 40
    assert len(said) == 1 and f"cannot keep the idx of {text_shards[0]}" in said[0]


class _Elsewhere(LocalShard):
    """A local file that looks as if it were far away."""

    def __init__(self, path: Path, version: str) -> None:
        super().__init__(path)
        self.folder = None
        self.identity = f"s3://bucket/{path.name}"
        self._version = version

    def stat(self) -> Stat:
        return Stat(super().stat().size, self._version)


def test_a_remote_shard_takes_the_index_beside_it_when_the_sizes_agree(
    tmp_path: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_shard(tmp_path / "a.tar", {"k": {"txt": b"1"}})
    expected = load_index(LocalShard(path))
    with monkeypatch.context() as patch:
        _no_building(patch)
        adopted = load_index(_Elsewhere(path, "etag-1"))
        assert adopted.digest == expected.digest and adopted.checksums.stat == Stat(path.stat().st_size, "etag-1")
        _sidecar(path).unlink()
        _same(load_index(_Elsewhere(path, "etag-1")), adopted)  # from the cache
    assert load_index(_Elsewhere(path, "etag-2")).checksums.stat.version == "etag-2"  # read anew
    load_index(LocalShard(path))
    make_shard(path, {"k": {"txt": b"1" * 20_000}})
    assert load_index(_Elsewhere(path, "etag-3")).part_sizes.tolist() == [[20_000]]  # not the stale one beside it


@pytest.mark.parametrize("place", [0, 2])
def test_a_remote_shard_of_the_same_size_does_not_take_the_index_of_another(
    place: int, tmp_path: Path, make_shard: MakeShard
) -> None:
    texts = [bytes([i]) * CHECKED_BYTES for i in range(3)]
    path = make_shard(tmp_path / "a.tar", {f"k{i}": {"bin": text} for i, text in enumerate(texts)})
    stale = load_index(LocalShard(path))
    texts[place] = b"x" * CHECKED_BYTES
    make_shard(path, {f"k{i}": {"bin": text} for i, text in enumerate(texts)})
    shard, said = _Elsewhere(path, "etag"), list[str]()
    index = load_index(shard, said.append)
    assert len(said) == 1 and "the index beside it (.stoker-idx.npz) is of another shard and is not used" in said[0]
    assert index.digest != stale.digest
    np.testing.assert_array_equal(index.checksums.blocks, build_index(shard).checksums.blocks)


def test_a_remote_shard_with_a_kept_index_is_asked_about_once_and_many_are_at_once(
    text_shards: list[Path], tmp_path: Path
) -> None:
    meeting, asked = threading.Barrier(16, timeout=400.0), Counter[str]()

    class Counted(_Elsewhere):
        def stat(self) -> Stat:
            asked[self.name] += 1
            meeting.wait()
            return super().stat()

    paths = [Path(shutil.copy(text_shards[0], tmp_path / f"copy-{i}.tar")) for i in range(16)]
    for path in paths:
        load_index(_Elsewhere(path, "etag"))
    assert [index.count for index in load_indexes([Counted(path, "etag") for path in paths])] == [40] * 16
    assert set(asked.values()) == {1}


BUILDER = """
import sys, time
from pathlib import Path
from data.index import shard_index
from data.shards.local_shard import LocalShard
build = shard_index.build_index
def slowly(*shard):
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    return build(*shard)
shard_index.build_index = slowly
print(shard_index.load_index(LocalShard(sys.argv[1])).count, flush=True)
"""


@pytest.fixture
def start_builder(text_shards: list[Path]) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(pause_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(text_shards[2]), str(pause_s)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_of_many_processes_builds_and_a_killed_one_frees_the_others(
    text_shards: list[Path], start_builder: Callable[[float], subprocess.Popen[str]]
) -> None:
    killed = start_builder(600)
    assert killed.stdout is not None and killed.stdout.readline() == "building\n"
    others = [start_builder(1.0) for _ in range(4)]
    time.sleep(1.0)
    killed.send_signal(signal.SIGKILL)
    lines = [process.communicate(timeout=400)[0].split() for process in others]
    assert sorted(lines) == [["150"], ["150"], ["150"], ["building", "150"]]
    assert read_kept_index(LocalShard(text_shards[2])) is not None
    assert sorted(p.name for p in text_shards[2].parent.glob("text-2*")) == ["text-2.tar", "text-2.tar.stoker-idx.npz"]
    assert not list(text_shards[2].parent.glob(".*"))
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.lock"))


def test_a_stopped_builder_is_not_waited_for_long(
    text_shards: list[Path],
    start_builder: Callable[[float], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = start_builder(600)
    assert stopped.stdout is not None and stopped.stdout.readline() == "building\n"
    stopped.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(sidecar, "BUILDER_WAIT_S", 0.5)
    started = time.monotonic()
    assert load_index(LocalShard(text_shards[2])).count == 150  # the other one still stands there
    assert time.monotonic() - started >= 0.5


def _load(shard: Path) -> int:
    return load_index(LocalShard(shard)).count


def test_processes_may_index_at_once(text_shards: list[Path]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_load, [text_shards[2]] * 12, chunksize=1) == [150] * 12


def test_derived_arrays_are_dropped_with_another_stamp(text_shards: list[Path]) -> None:
    shard = LocalShard(text_shards[0])
    sidecar.save(shard, "len", "one", {"lengths": np.arange(3)}, pytest.fail)
    found = sidecar.load(shard, "len", "one")
    assert found is not None and list(found) == ["lengths"] and found["lengths"].tolist() == [0, 1, 2]
    assert sidecar.load(shard, "len", "two") is None and sidecar.load(shard, "other", "one") is None


def test_a_catalog_is_opened_in_order_and_refuses_what_is_not_as_indexed(tmp_path: Path, make_shard: MakeShard) -> None:
    noise = random.Random(0).randbytes(5000)
    paths = [make_shard(tmp_path / f"{i:02d}.tar", {f"k{i}": {"bin": noise}}) for i in range(12)]
    pattern = str(tmp_path / "{00..11}.tar")
    catalog = open_catalog(pattern)
    assert [catalog.key(i) for i in range(12)] == [f"k{i}" for i in range(12)]
    times = paths[3].stat()
    contents = bytearray(paths[3].read_bytes())
    contents[600] ^= 1
    paths[3].write_bytes(contents)
    os.utime(paths[3], ns=(times.st_atime_ns, times.st_mtime_ns))
    part = open_catalog(pattern).part("bin")
    with pytest.raises(DataError, match=r"03\.tar: .*bytes 0 to 10239 are not those that were indexed"):
        open_catalog(pattern).read(part, 3)
    assert open_catalog(pattern, verify_reads=False).read(part, 3) == bytes(contents[512:5512])
    replaced = open_catalog(pattern, verify_reads=False)
    make_shard(paths[3], {"k3": {"bin": noise * 9}})
    with pytest.raises(DataError, match=r"03\.tar: .*the shard changed"):
        replaced.read(part, 3)


def test_of_several_bad_shards_the_first_is_named(tmp_path: Path, make_shard: MakeShard) -> None:
    for i in range(5):
        (tmp_path / f"{i}.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"0\.tar: not a tar archive"):
        open_catalog(str(tmp_path / "*.tar"))


def test_a_shard_that_changes_while_it_is_indexed_is_refused(text_shards: list[Path]) -> None:
    class Changing(LocalShard):
        def stream(self) -> Iterator[bytes]:
            yield from super().stream()
            os.utime(text_shards[0], ns=(0, 7))

    with pytest.raises(DataError, match="changed while it was indexed"):
        build_index(Changing(text_shards[0]))


def test_checksums_of_another_size_are_not_mixed(text_shards: list[Path]) -> None:
    shard = LocalShard(text_shards[0])
    index = load_index(shard)
    shard.expect(Checksums(Stat(index.checksums.stat.size + 1, index.checksums.stat.version), index.checksums.blocks))
    with pytest.raises(DataError, match="changed after it was indexed"):
        shard.read(0, 1)
