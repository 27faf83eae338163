"""`verify` finds every byte that changed and every sample that cannot be used."""

import hashlib
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.recipe import Recipe
from data.index.shard_index import load_index
from data.shards.local_shard import LocalShard
from data.shards.shard import CHECKED_BYTES
from data.verify.verify_samples import verify_shards

MakeShard = Callable[..., Path]
SAMPLE_BYTES = 50_000


@pytest.fixture
def shard(tmp_path: Path, make_shard: MakeShard) -> Path:
    """20 samples over 4 blocks, the end of the archive padded as tar does."""
    noise = random.Random(0)
    return make_shard(tmp_path / "a.tar", {f"k{i:02d}": {"bin": noise.randbytes(SAMPLE_BYTES)} for i in range(20)})


def _flip(shard: Path, place: int, bit: int = 0) -> None:
    """One bit, with size and time as before."""
    times = shard.stat()
    with shard.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def _manifest(shard: Path, **changed: object) -> None:
    contents = shard.read_bytes()
    entry = {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest(), "samples": 20, **changed}
    fields = {"created_by": "stoker data pack", "shards": [{"name": shard.name, **entry}]}
    (shard.parent / "manifest.json").write_text(json.dumps(fields))


def _places(shard: Path) -> list[int]:
    """Somewhere everywhere: headers, contents, padding, both zero blocks and what pads the archive."""
    size, member = shard.stat().st_size, 512 + -(-SAMPLE_BYTES // 512) * 512
    chosen = [
        0,
        100,
        148,
        155,
        500,
        511,
        512,
        512 + SAMPLE_BYTES,
        member - 1,
        20 * member,
        20 * member + 1023,
        size - 1,
    ]
    return chosen + random.Random(1).sample(range(size), 25)


def test_every_flipped_byte_is_found_through_the_index_and_its_samples_are_named(shard: Path) -> None:
    load_index(LocalShard(shard))
    assert verify_shards([str(shard)], None, pytest.fail) == []
    member = 512 + -(-SAMPLE_BYTES // 512) * 512
    for number, place in enumerate(_places(shard)):
        _flip(shard, place, number % 8)
        problems = [line for line in verify_shards([str(shard)], None) if "not those that were indexed" in line]
        assert len(problems) == 1 and problems[0].startswith(f"{shard}: bytes ")
        start, last = (int(number) for number in re.findall(r"bytes (\d+) to (\d+)", problems[0])[0])
        assert start <= place <= last < start + CHECKED_BYTES
        if place < 20 * member:
            names, more = re.findall(r"samples ([k\d]+(?:, [k\d]+)*)(?: and (\d+) more)?", problems[0])[0]
            first = start // member
            assert names.split(", ")[0] == f"k{first:02d}"
            assert len(names.split(", ")) + int(more or 0) == min(last // member, 19) - first + 1
        _flip(shard, place, number % 8)
    assert verify_shards([str(shard)], None) == []


def test_every_flipped_byte_is_found_through_the_manifest_alone(shard: Path) -> None:
    _manifest(shard)
    assert verify_shards([str(shard)], None, pytest.fail) == []
    for place in _places(shard):
        _flip(shard, place)
        problems = verify_shards([str(shard)], None)
        assert any("manifest.json says sha256" in line and str(shard) in line for line in problems)
        _flip(shard, place)


def test_a_manifest_that_counts_otherwise_is_told(shard: Path) -> None:
    _manifest(shard, samples=21)
    assert verify_shards([str(shard)], None) == [
        f"{shard}: manifest.json says 21 samples, the shard has 20: copy it again",
    ]
    _manifest(shard, bytes=5)
    assert "says 5 bytes" in verify_shards([str(shard)], None)[0]


def test_a_shard_that_a_manifest_lists_and_a_glob_would_match_is_missed(
    tmp_path: Path, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in" / "set"
    folder.mkdir(parents=True)
    entries = []
    for name in ("train-000.tar", "train-001.tar", "val-000.tar"):
        contents = make_shard(folder / name, {"k": {"txt": name.encode()}}).read_bytes()
        sha256 = hashlib.sha256(contents).hexdigest()
        entries.append({"name": name, "bytes": len(contents), "samples": 1, "sha256": sha256})
    (folder / "manifest.json").write_text(json.dumps({"shards": entries}))
    monkeypatch.chdir(tmp_path)
    globs = ["in/set/train-*.tar", "./in/s?t/{train,val}-*.tar", f"{tmp_path}/**/train-*.tar", "in/**.tar"]
    assert [verify_shards(pattern, None, pytest.fail) for pattern in globs] == [[]] * 4
    (folder / "train-001.tar").unlink()
    for pattern in globs:
        [problem] = verify_shards(pattern, None)
        assert problem.endswith("set/train-001.tar: manifest.json lists it, but there is no such file: copy it again")
    for pattern in ("in/set/train-000.tar", "in/set/val-*.tar"):
        assert verify_shards(pattern, None, pytest.fail) == []


def test_without_index_or_manifest_it_is_said_once_that_bytes_cannot_be_compared(text_shards: list[Path]) -> None:
    load_index(LocalShard(text_shards[0]))
    said: list[str] = []
    assert verify_shards([str(shard) for shard in text_shards], None, said.append) == []
    assert len(said) == 1 and said[0].startswith("2 of 3 shards have neither an index nor a manifest.json")


def test_a_manifest_of_another_kind_is_told_and_not_used(shard: Path) -> None:
    (shard.parent / "manifest.json").write_text('{"shards": 3}')
    said: list[str] = []
    assert verify_shards([str(shard)], None, said.append) == []
    assert "not a manifest" in said[0] and "neither an index" in said[1]


def test_a_shard_made_anew_is_no_damage_but_new_contents_under_old_headers_are(
    tmp_path: Path, make_shard: MakeShard
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"old": {"txt": b"1"}})
    load_index(LocalShard(shard))
    make_shard(shard, {"new": {"txt": b"1"}})
    os.utime(shard, ns=(0, 1))
    assert verify_shards([str(shard)], None) == []
    make_shard(shard, {"old": {"txt": b"2"}})
    os.utime(shard, ns=(0, 1))
    assert ["samples old" in line for line in verify_shards([str(shard)], None)] == [True]


def test_damage_in_several_places_is_one_line_each(shard: Path) -> None:
    load_index(LocalShard(shard))
    for place in (10_000, CHECKED_BYTES + 10_000, 3 * CHECKED_BYTES + 10_000):
        _flip(shard, place)
    lines = verify_shards([str(shard)], None)
    ranges = [re.findall(r"bytes (\d+) to (\d+)", line)[0] for line in lines]
    size = shard.stat().st_size
    assert [tuple(map(int, pair)) for pair in ranges] == [(0, 2 * CHECKED_BYTES - 1), (3 * CHECKED_BYTES, size - 1)]


def test_every_bad_part_is_told_in_order_with_threads(
    tmp_path: Path, make_shard: MakeShard, png: Callable[[int], bytes]
) -> None:
    good, bad = {"png": png(1), "cls": b"1"}, {"png": b"no", "cls": b"x", "json": b"{", "npy": b"?", "txt": b"\xff"}
    samples = {f"k{i:03d}": bad if i % 50 == 7 else good for i in range(300)}
    problems = verify_shards([str(make_shard(tmp_path / "a.tar", samples))], None)
    expected = [f"k{i:03d}: part {part} " for i in range(7, 300, 50) for part in sorted(bad)]
    assert len(problems) == len(expected)
    for line, words in zip(problems, expected, strict=True):
        assert words in line


def test_a_recipe_checks_what_training_reads(
    tmp_path: Path, make_shard: MakeShard, image_recipe: Callable[..., Recipe], png: Callable[[int], bytes]
) -> None:
    samples = {"a": {"png": png(1), "cls": b"3"}, "b": {"png": png(1), "cls": b"12"}}
    shard = make_shard(tmp_path / "a.tar", samples)
    problems = verify_shards([str(shard)], image_recipe([shard]))
    assert len(problems) == 1 and "sample b: part cls is 12, outside 0 … 9" in problems[0]


def test_damaged_headers_and_cut_shards_are_problems_not_stops(
    shard: Path, tmp_path: Path, make_shard: MakeShard
) -> None:
    cut = tmp_path / "b.tar"
    cut.write_bytes(shard.read_bytes()[:70_000])
    fine = make_shard(tmp_path / "c.tar", {"k": {"txt": b"\xff"}})
    _flip(shard, 3)
    problems = verify_shards([str(path) for path in (shard, cut, fine)], None)
    assert ["not a tar" in problems[0], "b.tar: truncated" in problems[1], "part txt" in problems[2]] == [True] * 3


def test_remade_headers_of_other_formats_verify(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo("ü" * 90 + ".txt")
        header.size = 3
        tar.addfile(header, io.BytesIO(b"abc"))
    load_index(LocalShard(tmp_path / "a.tar"))
    assert verify_shards(str(tmp_path / "a.tar"), None, pytest.fail) == []
    _flip(tmp_path / "a.tar", 600)  # the name, in its pax header
    assert any("not those that were indexed" in line for line in verify_shards(str(tmp_path / "a.tar"), None))
