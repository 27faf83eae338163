"""Shards by any writer give the same index; damaged shards give one line that names them."""

import gzip
import io
import multiprocessing
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from configs.errors import DataError
from data.catalog import Catalog
from data.shards import expand
from data.tar_index import ShardIndex, build_index, load_index, read_kept_index

LONG = "folder-" * 12 + "/" + "name-" * 18
SAMPLES = {
    "a": {"txt": b"", "cls": b"3"},
    "deep.er/b": {"seg.png": b"x" * 512, "txt": b"y" * 513},
    LONG: {"txt": b"long"},
    "ünï": {"JPG": b"z" * 2000},
}


def _contents(shard: Path, index: ShardIndex) -> dict[str, dict[str, bytes]]:
    catalog = Catalog([shard], [index])
    parts = [catalog.part(name) for name in index.part_names]
    return {
        catalog.key(i): {part.name: catalog.read(part, i) for part in parts if part.sizes[i] >= 0}
        for i in range(catalog.count)
    }


EXPECTED = {key: {part.lower(): contents for part, contents in parts.items()} for key, parts in SAMPLES.items()}


def _files() -> list[tuple[str, bytes]]:
    return [(f"{key}.{part}", contents) for key, parts in SAMPLES.items() for part, contents in parts.items()]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_in_every_format_gives_the_same_samples(tmp_path: Path, format: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name, contents in _files():
            header = tarfile.TarInfo("./" + name)
            header.size, header.mtime = len(contents), 1.5  # a fraction needs a pax header
            tar.addfile(header, io.BytesIO(contents))
    assert _contents(tmp_path / "a.tar", build_index(tmp_path / "a.tar")) == EXPECTED


def test_a_size_in_a_pax_header_counts(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": "600"}
    header = tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT)  # whose own size is 0, as for 8 GiB and more
    extension = info.tobuf(tarfile.PAX_FORMAT)[:-512]
    (tmp_path / "a.tar").write_bytes(extension + header + b"x" * 600 + bytes(424 + 1024))
    assert _contents(tmp_path / "a.tar", build_index(tmp_path / "a.tar")) == {"a": {"txt": b"x" * 600}}


@pytest.mark.parametrize("format", ["ustar", "gnu", "pax", "posix"])
def test_gnu_tar_in_every_format_gives_the_same_samples(tmp_path: Path, format: str) -> None:
    for name, contents in _files():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    names = ["./deep.er"] + [f"./{name}" for name, _ in _files()]
    command = ["tar", f"--format={format}", "--no-recursion", "-cf", str(tmp_path / "a.tar"), *names]
    subprocess.run(command, cwd=tmp_path / "files", check=True)
    assert _contents(tmp_path / "a.tar", build_index(tmp_path / "a.tar")) == EXPECTED


def test_webdataset_writers_give_the_same_samples(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        for key, parts in SAMPLES.items():
            writer.write({"__key__": key, **parts})
    with webdataset.ShardWriter(str(tmp_path / "b-%d.tar"), maxcount=99, encoder=False, verbose=0) as writer:
        for key, parts in SAMPLES.items():
            writer.write({"__key__": key, **parts})
    for name in ("a.tar", "b-0.tar"):
        assert _contents(tmp_path / name, build_index(tmp_path / name)) == EXPECTED


def test_the_index_sees_what_webdataset_sees(text_shards: list[Path]) -> None:
    for shard in text_shards:
        reader = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
        theirs = {sample["__key__"]: {"txt": sample["txt"]} for sample in reader}
        assert _contents(shard, load_index(shard)) == theirs


def test_a_kept_index_equals_a_new_one(text_shards: list[Path]) -> None:
    built, kept = load_index(text_shards[2]), read_kept_index(text_shards[2])
    assert kept is not None
    for name, value in vars(built).items():
        np.testing.assert_array_equal(vars(kept)[name], value)


def test_a_changed_shard_is_indexed_again(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    shard = make_shard(tmp_path / "a.tar", {"old": {"txt": b"1"}})
    assert load_index(shard).key(0) == "old"
    make_shard(shard, {"new": {"txt": b"1"}})
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))  # same size, and a coarse clock may give the same time
    assert load_index(shard).key(0) == "new"


def test_a_damaged_index_is_built_again(text_shards: list[Path]) -> None:
    load_index(text_shards[0])
    sidecar = text_shards[0].with_name(text_shards[0].name + ".stoker-idx.npz")
    for damaged in (b"", b"junk", sidecar.read_bytes()[:700]):
        sidecar.write_bytes(damaged)
        assert load_index(text_shards[0]).count == 40
        assert read_kept_index(text_shards[0]) is not None


def test_an_index_goes_to_the_cache_when_the_folder_cannot_hold_it(text_shards: list[Path]) -> None:
    sidecar = text_shards[0].with_name(text_shards[0].name + ".stoker-idx.npz")
    sidecar.mkdir()  # stands in for a read-only folder, which root can write to
    load_index(text_shards[0])
    assert list(Path(os.environ["XDG_CACHE_HOME"]).glob("stoker/index/*.stoker-idx.npz"))
    assert read_kept_index(text_shards[0]) is not None


def test_processes_may_index_at_once(text_shards: list[Path]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = [index.count for index in pool.map(load_index, [text_shards[2]] * 12, chunksize=1)]
    assert counts == [150] * 12
    assert read_kept_index(text_shards[2]) is not None
    assert sorted(p.name for p in text_shards[2].parent.glob("text-2*")) == ["text-2.tar", "text-2.tar.stoker-idx.npz"]
    assert not list(text_shards[2].parent.glob(".*"))


def _one_line(shard: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        build_index(shard)
    message = str(caught.value)
    assert str(shard) in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {f"s{i}": {"txt": b"q" * (300 * i)} for i in range(5)}).read_bytes()
    end = max(i for i, byte in enumerate(whole) if byte) // 512 * 512 + 512
    cuts = [*random.Random(0).sample(range(1, end + 1024), 200), 512, 1024, end, end + 512, end + 1023]
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        _one_line(tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 1024])
    assert build_index(tmp_path / "cut.tar").count == 5


def test_damage_in_any_header_is_found(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {f"s{i}": {"txt": b"q" * 100} for i in range(4)}).read_bytes()
    for place in random.Random(0).sample(range(512), 60):
        damaged = bytearray(whole)
        damaged[2 * 1024 + place] ^= 0x11
        (tmp_path / "bad.tar").write_bytes(damaged)
        _one_line(tmp_path / "bad.tar", "damaged tar header at byte 2048")


def test_what_is_no_tar_is_refused_by_name(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {"s": {"txt": b"q"}}).read_bytes()
    refused = {
        "empty.tar": (b"", "empty"),
        "text.tar": (b"hello " * 400, "not a tar"),
        "short.tar": (b"hello", "not a tar"),
        "zip.tar": (gzip.compress(os.urandom(3000)), "compressed"),
        "none.tar": (bytes(10240), "no samples"),
        "two.tar": (whole + whole, "data follows the end"),
    }
    for name, (contents, word) in refused.items():
        (tmp_path / name).write_bytes(contents)
        _one_line(tmp_path / name, word)


@pytest.mark.parametrize(("kind", "word"), [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link")])
def test_links_are_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("a.txt")
        header.type, header.linkname = kind, "b.txt"
        tar.addfile(header)
    _one_line(tmp_path / "a.tar", word, "a.txt")


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_are_refused(tmp_path: Path, format: str) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    subprocess.run(["tar", f"--format={format}", "--sparse", "-cf", "a.tar", "a.txt"], cwd=tmp_path, check=True)
    _one_line(tmp_path / "a.tar", "sparse")


def test_repeated_parts_and_scattered_samples_are_refused(tmp_path: Path) -> None:
    for names, word in ((["a.txt", "a.TXT"], "part txt twice"), (["a.txt", "b.txt", "a.cls"], "sample a are not tog")):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
        _one_line(tmp_path / "a.tar", word)


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    shard = make_shard(tmp_path / "a.tar", {"s": {"txt": b"q" * 5000}})
    index = load_index(shard)
    make_shard(shard, {"s": {"txt": b"w" * 60_000}})
    with pytest.raises(DataError, match=r"a\.tar: the shard changed"):
        _contents(shard, index)
    os.truncate(shard, 1024)
    with pytest.raises(DataError, match=r"a\.tar: the shard changed"):
        _contents(shard, index)
    shard.unlink()
    with pytest.raises(DataError, match=r"a\.tar: cannot be read"):
        _contents(shard, index)


def test_patterns_expand_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b-000.tar", "b-001.tar", "a-9.tar", "a-10.tar", "a-9.tar.stoker-idx.npz"):
        Path(name).touch()
    found = {
        "b-{000..001}.tar": ["b-000.tar", "b-001.tar"],
        "{b-001,a-9}.tar": ["b-001.tar", "a-9.tar"],
        "a-*": ["a-10.tar", "a-9.tar"],
        "{b,a}-*.tar": ["b-000.tar", "b-001.tar", "a-10.tar", "a-9.tar"],
        "a-9.tar": ["a-9.tar"],
    }
    for pattern, names in found.items():
        assert [path.name for path in expand(pattern)] == names
    assert [path.name for path in expand(["b-001.tar", "a-9.tar"])] == ["b-001.tar", "a-9.tar"]
    refused = {"nope.tar": str(tmp_path), "b-{000..002}.tar": "b-002.tar", "{a,b": "no file", "s3://b/a.tar": "local"}
    for pattern, word in refused.items():
        with pytest.raises(DataError) as caught:
            expand(pattern)
        assert pattern in str(caught.value) and word in str(caught.value)
    with pytest.raises(DataError, match=r"a-9\.tar is named twice"):
        expand(["a-*.tar", "./a-9.tar"])
