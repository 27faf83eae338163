"""Shards by any writer give the same index; damaged shards give one line that names them."""

import contextlib
import gzip
import io
import itertools
import os
import random
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError
from data.index.catalog import Catalog
from data.index.shard_index import ShardIndex, build_index
from data.index.shard_patterns import expand_patterns
from data.index.tar_members import TarParser
from data.shards.local_shard import LocalShard
from data.shards.shard import CHECKED_BYTES, checksum

LONG = "folder-" * 12 + "/" + "name-" * 18
SAMPLES = {
    "a": {"txt": b"", "cls": b"3"},
    "deep.er/b": {"seg.png": b"x" * 512, "txt": b"y" * 513},
    LONG: {"txt": b"long"},
    "ünï": {"JPG": b"z" * 2000},
}
EXPECTED = {key: {part.lower(): contents for part, contents in parts.items()} for key, parts in SAMPLES.items()}


def _build(shard: Path) -> ShardIndex:
    return build_index(LocalShard(shard))


def _contents(shard: Path) -> dict[str, dict[str, bytes]]:
    index = _build(shard)
    catalog = Catalog([LocalShard(shard)], [index])
    parts = [catalog.part(name) for name in index.part_names]
    return {
        catalog.key(i): {part.name: catalog.read(part, i) for part in parts if part.sizes[i] >= 0}
        for i in range(catalog.count)
    }


def _files() -> list[tuple[str, bytes]]:
    return [(f"{key}.{part}", contents) for key, parts in SAMPLES.items() for part, contents in parts.items()]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_in_every_format_gives_the_same_samples(tmp_path: Path, format: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name, contents in _files():
            header = tarfile.TarInfo("./" + name)
            header.size, header.mtime = len(contents), 1.5  # a fraction needs a pax header
            tar.addfile(header, io.BytesIO(contents))
    assert _contents(tmp_path / "a.tar") == EXPECTED


@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "oldgnu", "pax", "posix"])
def test_gnu_tar_in_every_format_gives_the_same_samples(tmp_path: Path, format: str) -> None:
    files = _files() if format != "v7" else [(name, contents) for name, contents in _files() if len(name) < 90]
    for name, contents in files:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    names = ["./deep.er"] + [f"./{name}" for name, _ in files]
    command = ["tar", f"--format={format}", "--no-recursion", "-cf", str(tmp_path / "a.tar"), *names]
    subprocess.run(command, cwd=tmp_path / "files", check=True)
    expected = {key: parts for key, parts in EXPECTED.items() if format != "v7" or key != LONG}
    assert _contents(tmp_path / "a.tar") == expected


def test_webdataset_writers_give_the_same_samples(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        for key, parts in SAMPLES.items():
            writer.write({"__key__": key, **parts})
    with webdataset.ShardWriter(str(tmp_path / "b-%d.tar"), maxcount=99, encoder=False, verbose=0) as writer:
        for key, parts in SAMPLES.items():
            writer.write({"__key__": key, **parts})
    for name in ("a.tar", "b-0.tar"):
        assert _contents(tmp_path / name) == EXPECTED


def test_the_index_sees_what_webdataset_sees(text_shards: list[Path]) -> None:
    for shard in text_shards:
        reader = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
        assert _contents(shard) == {sample["__key__"]: {"txt": sample["txt"]} for sample in reader}


def test_what_is_no_part_of_a_sample_is_left_out(tmp_path: Path) -> None:
    names = ["__meta__/x.txt", "a/.hidden", ".hidden.txt", "README", "d/e.f/key.a.b.TXT", "d/e.f/key.cls"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    assert _contents(tmp_path / "a.tar") == {"d/e.f/key": {"a.b.txt": b"", "cls": b""}}


def test_global_pax_headers_name_what_follows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}) as tar:
        for name in ("a.txt", "b" * 150 + ".txt"):
            tar.addfile(tarfile.TarInfo(name))
    assert list(_contents(tmp_path / "a.tar")) == ["a", "b" * 150]


def test_a_size_in_a_pax_header_counts(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": "600"}
    header = tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT)  # whose own size is 0, as for 8 GiB and more
    extension = info.tobuf(tarfile.PAX_FORMAT)[:-512]
    (tmp_path / "a.tar").write_bytes(extension + header + b"x" * 600 + bytes(424 + 1024))
    assert _contents(tmp_path / "a.tar") == {"a": {"txt": b"x" * 600}}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_file_of_more_than_8_gib_is_found_and_what_follows_it(tmp_path: Path, format: int) -> None:
    sizes = {"a.bin": 9 << 30, "b.txt": 1}
    place = 0
    with (tmp_path / "a.tar").open("wb") as file:  # sparse on disk
        for name, size in sizes.items():
            info = tarfile.TarInfo(name)
            info.size = size
            file.seek(place)
            place += file.write(info.tobuf(format)) + -(-size // 512) * 512
        file.truncate(place + 1024)
    shard = LocalShard(tmp_path / "a.tar")

    def pieces() -> Iterator[bytes]:
        zeros = bytes(CHECKED_BYTES)
        for start in range(0, place + 1024, CHECKED_BYTES):  # without reading the hole
            size = min(CHECKED_BYTES, place + 1024 - start)
            yield shard.read(start, size) if start < 4096 or start > (9 << 30) - 4096 else zeros

    found = list(TarParser("a.tar", place + 1024).members(pieces()))
    assert [name for members in found for name in members.names] == [b"a.bin", b"b.txt"]
    assert [size for members in found for size in members.sizes.tolist()] == list(sizes.values())


NAMES = st.text("ab./ü_", min_size=1, max_size=8) | st.text("abc/ü", min_size=90, max_size=300)


@given(
    files=st.lists(st.tuples(NAMES, st.integers(0, 3000), st.booleans()), max_size=12),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    piece_bytes=st.sampled_from([512, 700, 1024, 5000, CHECKED_BYTES]),
)
def test_any_tar_lists_as_tarfile_lists_it_in_pieces_of_any_size(
    files: list[tuple[str, int, bool]], format: int, piece_bytes: int
) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=format) as tar:
        for name, size, folder in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 0 if folder else size, size / 8
            info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
            with contextlib.suppress(ValueError):  # too long for ustar
                tar.addfile(info, io.BytesIO(random.Random(size).randbytes(size)))
    whole.seek(0)
    with tarfile.open(fileobj=whole) as tar:
        theirs = [(m.name, m.offset_data, m.size, m.offset) for m in tar if m.isreg()]
    contents = whole.getvalue()
    pieces = (contents[at : at + piece_bytes] for at in range(0, len(contents), piece_bytes))
    found = list(TarParser("a.tar", len(contents)).members(pieces))
    columns = ([name.decode() for m in found for name in m.names], *_columns(found))
    # tarfile strips slashes at the end of names.
    assert [(row[0].rstrip("/"), *row[1:]) for row in zip(*columns, strict=True)] == [
        (_without_dots(name).rstrip("/"), *rest) for name, *rest in theirs
    ]


def _columns(found: list[object]) -> Iterator[list[int]]:
    for name in ("offsets", "sizes", "starts"):
        yield [value for members in found for value in getattr(members, name).tolist()]


def _without_dots(name: str) -> str:
    return name[2:] and _without_dots(name[2:]) if name.startswith("./") else name


def test_the_index_sums_groups_counts_parts_and_checks_blocks(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    sizes = [(i * 37) % 9000 for i in range(150)]
    samples = {f"{i:04d}": {"txt": b"x" * size, **({"cls": b"1"} if i % 3 else {})} for i, size in enumerate(sizes)}
    shard = make_shard(tmp_path / "a.tar", samples)
    index, contents = _build(shard), shard.read_bytes()
    assert index.part_names == ("cls", "txt") and index.part_counts.tolist() == [100, 150]
    totals = [size + bool(i % 3) for i, size in enumerate(sizes)]
    assert index.group_bytes.tolist() == [sum(totals[a : a + 64]) for a in (0, 64, 128)]
    blocks = [contents[at : at + CHECKED_BYTES] for at in range(0, len(contents), CHECKED_BYTES)]
    assert len(blocks) > 2 and index.checksums.blocks.tolist() == [checksum(block) for block in blocks]
    assert index.checksums.stat.size == len(contents)


def test_the_digest_follows_keys_layout_and_contents_not_time_or_place(
    tmp_path: Path, make_shard: Callable[..., Path]
) -> None:
    (tmp_path / "b").mkdir()
    same = [make_shard(tmp_path / name, {"k": {"txt": b"12"}}) for name in ("a.tar", "b/c.tar")]
    os.utime(same[1], ns=(0, 1))
    assert _build(same[0]).digest == _build(same[1]).digest
    other = [("k", "txt", b"12"), ("j", "txt", b"12"), ("k", "md", b"12"), ("k", "txt", b"13"), ("k", "txt", b"123")]
    shards = [make_shard(tmp_path / f"{i}.tar", {key: {part: text}}) for i, (key, part, text) in enumerate(other)]
    assert len({_build(shard).digest for shard in shards}) == len(other)


def _refuse(shard: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        _build(shard)
    message = str(caught.value)
    assert message.startswith(f"{shard}: ") and "\n" not in message
    for word in words:
        assert word in message


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {f"s{i}": {"txt": b"q" * (300 * i)} for i in range(5)}).read_bytes()
    end = max(i for i, byte in enumerate(whole) if byte) // 512 * 512 + 512
    cuts = [*random.Random(0).sample(range(1, end + 1024), 200), 512, 1024, end, end + 512, end + 1023]
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        _refuse(tmp_path / "cut.tar", "truncated" if cut >= 512 else "not a tar archive")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 1024])
    assert _build(tmp_path / "cut.tar").count == 5


def test_damage_in_any_header_is_found(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {f"s{i}": {"txt": b"q" * 100} for i in range(4)}).read_bytes()
    for place, mask in itertools.product(random.Random(0).sample(range(512), 60), (0x11, 0x02)):
        damaged = bytearray(whole)
        damaged[2 * 1024 + place] ^= mask
        (tmp_path / "bad.tar").write_bytes(damaged)
        _refuse(tmp_path / "bad.tar", "damaged tar header at byte 2048")


def test_a_damaged_pax_header_is_found(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"comment": "x"}
    whole = bytearray(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    assert whole[512:525] == b"13 comment=x\n"
    for place, byte in ((512, b"9"), (512, b"x"), (513, b"0"), (514, b"\0"), (522, b"?"), (524, b" ")):
        damaged = bytearray(whole)
        damaged[place : place + 1] = byte
        (tmp_path / "bad.tar").write_bytes(damaged)
        _refuse(tmp_path / "bad.tar", "damaged pax header at byte 512")


@pytest.mark.parametrize(("size", "word"), [("9" * 5000, "damaged size"), ("-1", "damaged size"), ("9" * 18, "trunc")])
def test_absurd_sizes_are_refused(tmp_path: Path, size: str, word: str) -> None:
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"size": size}
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    _refuse(tmp_path / "bad.tar", word)
    info.size, info.pax_headers = 1 << 80, {}
    (tmp_path / "bad.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    _refuse(tmp_path / "bad.tar", "truncated")


def test_what_is_no_tar_is_refused_by_name(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    whole = make_shard(tmp_path / "whole.tar", {"s": {"txt": b"q"}}).read_bytes()
    refused = {
        "empty.tar": (b"", "empty"),
        "text.tar": (b"hello " * 400, "not a tar"),
        "short.tar": (b"hello", "not a tar"),
        "small.tar": (gzip.compress(b"q"), "compressed"),
        "zip.tar": (gzip.compress(os.urandom(3000)), "compressed"),
        "none.tar": (bytes(10240), "no samples"),
        "two.tar": (whole + whole, "data follows the end"),
        "tail.tar": (whole + bytes(CHECKED_BYTES * 3) + b"x", f"at byte {len(whole) + CHECKED_BYTES * 3}"),
    }
    for name, (contents, word) in refused.items():
        (tmp_path / name).write_bytes(contents)
        _refuse(tmp_path / name, word)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.CHRTYPE, "device"),
        (b"Z", "unknown type b'Z'"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("a.txt")
        header.type, header.linkname = kind, "b.txt"
        tar.addfile(header)
    _refuse(tmp_path / "a.tar", word, "a.txt")


@pytest.mark.parametrize("format", ["gnu", "pax"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_files_are_refused(tmp_path: Path, format: str, version: str) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        for place in range(20):  # more pieces than the first header holds
            file.seek(place << 19)
            file.write(b"x")
    options = [f"--format={format}", "--sparse"] + [f"--sparse-version={version}"] * (format == "pax")
    subprocess.run(["tar", *options, "-cf", "a.tar", "a.txt"], cwd=tmp_path, check=True)
    _refuse(tmp_path / "a.tar", "sparse")


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("fine.txt"))
        tar.addfile(tarfile.TarInfo("ü.txt"))
    _refuse(tmp_path / "a.tar", r"b'\xfc.txt' is not UTF-8")


def test_repeated_parts_and_scattered_samples_are_refused(tmp_path: Path) -> None:
    for names, word in ((["a.txt", "a.TXT"], "part txt twice"), (["a.txt", "b.txt", "a.cls"], "sample a are not tog")):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
        _refuse(tmp_path / "a.tar", word)


def _energon_index(shard: Path) -> bytes:
    """As Energon's `prepare` writes it: the start of each sample, then of the end."""
    with tarfile.open(shard) as tar:
        starts = {member.name.partition(".")[0]: member.offset for member in reversed(tar.getmembers())}
        return b"".join(struct.pack("<Q", offset) for offset in [*reversed(starts.values()), tar.offset])


def test_energons_index_is_compared_and_believed_only_when_it_agrees(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:  # with pax headers
        for i in range(5):
            writer.write({"__key__": f"{i}" * (i * 30 + 1), "txt": b"x" * 100 * i, "cls": b"1"})
    shard, said = LocalShard(tmp_path / "a.tar"), list[str]()
    theirs = _energon_index(tmp_path / "a.tar")
    (tmp_path / "a.tar.idx").write_bytes(theirs)
    ours = build_index(shard, said.append)
    assert ours.count == 5 and not said
    for wrong in (theirs[:-8], theirs[:8] + theirs[16:], theirs + b"x", b""):
        (tmp_path / "a.tar.idx").write_bytes(wrong)
        assert build_index(shard, said.append).digest == ours.digest
        assert "a.tar.idx" in said.pop() and not said


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
        "s3://b/{a,c}/x-{08..10}.tar": [f"s3://b/{f}/x-{i}.tar" for f in "ac" for i in ("08", "09", "10")],
        "https://h/a.tar?sig=*[1]": ["https://h/a.tar?sig=*[1]"],
    }
    for pattern, names in found.items():
        assert expand_patterns(pattern) == names
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    (deep / "c-0.tar").touch()
    monkeypatch.setenv("HOME", str(deep))
    assert (
        expand_patterns("**/c-*.tar")
        == expand_patterns("deep/**.tar")
        == expand_patterns("deep/er/**/c-0.tar")
        == ["deep/er/c-0.tar"]
    )
    assert expand_patterns("~/c-{0..0}.tar") == expand_patterns("~/*.tar") == [str(deep / "c-0.tar")]
    assert expand_patterns(["b-001.tar", "a-9.tar"]) == ["b-001.tar", "a-9.tar"]
    refused = {
        "nope.tar": str(tmp_path),
        "b-{000..002}.tar": "b-002.tar",
        "{a,b": "no file",
        "http://h/*.tar": "web servers do not list files",
    }
    for pattern, word in refused.items():
        with pytest.raises(DataError) as caught:
            expand_patterns(pattern)
        assert pattern in str(caught.value) and word in str(caught.value)
    for twice in (["a-*.tar", "./a-9.tar"], ["a-9.tar", "s3://b/a.tar", "s3://b/{a,b}.tar"]):
        with pytest.raises(DataError, match="is named twice"):
            expand_patterns(twice)


def test_headers_are_checked_across_many_batches(tmp_path: Path, make_shard: Callable[..., Path]) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{i:06d}": {"txt": b"%d" % i} for i in range(9000)})
    index = _build(shard)
    assert index.count == 9000 and index.key(8999) == "008999"
    np.testing.assert_array_equal(index.part_offsets[0], np.arange(9000) * 1024 + 512)
    contents = bytearray(shard.read_bytes())
    contents[8500 * 1024 + 7] ^= 1
    shard.write_bytes(contents)
    _refuse(shard, f"damaged tar header at byte {8500 * 1024}")
