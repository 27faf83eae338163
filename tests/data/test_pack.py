"""Packing is deterministic, loses nothing, and webdataset reads what it writes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from configs.errors import DataError
from data.examples import pack_digits
from data.pack import pack_images, pack_text
from data.shard_writer import ShardLimits


def _read(folder: Path, pattern: str) -> dict[str, dict[str, bytes]]:
    found = {}
    for shard in sorted(folder.glob(pattern)):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
            assert sample["__key__"] not in found
            found[sample["__key__"]] = {name: value for name, value in sample.items() if not name.startswith("__")}
    return found


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for i in range(60):
        path = tmp_path / "texts" / f"part {i % 3}" / f"file.{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {i} " * 50)
    (tmp_path / "texts" / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "texts" / "empty.txt").touch()
    (tmp_path / "texts" / "a.b.txt").write_text("first")
    (tmp_path / "texts" / "a_b.txt").write_text("second")  # the same key without dots
    return tmp_path / "texts"


def test_every_text_is_packed_once_and_webdataset_reads_it(tmp_path: Path, texts: Path) -> None:
    packed = pack_text(texts, "**/*.txt", tmp_path / "out", 0.2, ShardLimits(bytes=4000))
    train, val = _read(tmp_path / "out", "train-*.tar"), _read(tmp_path / "out", "val-*.tar")
    assert (len(train), len(val), packed.skipped) == (packed.train_samples, packed.val_samples, 2)
    assert 3 < len(val) < 25
    assert not set(train) & set(val)
    expected = sorted(p.read_bytes() for p in texts.rglob("*.txt") if p.name not in ("latin.txt", "empty.txt"))
    assert sorted(sample["txt"] for sample in [*train.values(), *val.values()]) == expected
    assert packed.shards == len(list((tmp_path / "out").iterdir())) > 4


def test_packing_again_gives_the_same_bytes(tmp_path: Path, texts: Path) -> None:
    for name in ("one", "two"):
        pack_text(texts, "**/*.txt", tmp_path / name, 0.2, ShardLimits(samples=20))
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_existing_output_is_not_overwritten_and_failure_leaves_nothing(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(DataError, match="out: already exists"):
        pack_text(texts, "**/*.txt", tmp_path / "out", 0.2)
    with pytest.raises(DataError, match=r"no file matches \*\.rst"):
        pack_text(texts, "*.rst", tmp_path / "new", 0.2)
    with pytest.raises(DataError, match="no sample is left to train on"):
        pack_text(texts, "latin.txt", tmp_path / "new", 0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "texts"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept"]


def test_images_keep_their_bytes_and_are_numbered_by_class(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "in" / name / f"{i}.PNG").write_bytes(png(100 * label + i))
    (tmp_path / "in" / "bee" / "notes.md").touch()
    packed = pack_images(tmp_path / "in", tmp_path / "out", 0.0)
    found = _read(tmp_path / "out", "train-*.tar")
    assert (len(found), packed.val_samples, packed.skipped) == (20, 0, 1)
    assert {(s["cls"], s["png"]) for s in found.values()} == {
        (b"%d" % c, png(100 * c + i)) for c in (0, 1) for i in range(10)
    }
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["ant", "bee"]
    assert list(found)[:10] != sorted(found)[:10]


def test_the_digits_are_split_evenly_by_class(tmp_path: Path) -> None:
    packed = pack_digits(tmp_path / "digits")
    assert (packed.train_samples, packed.val_samples) == (1438, 359)
    labels = [int(s["cls"]) for s in _read(tmp_path / "digits", "val-*.tar").values()]
    assert all(34 <= labels.count(label) <= 37 for label in range(10))


def test_even_a_few_files_give_a_validation_set(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"text of {name}")
    packed = pack_text(folder, "*.txt", tmp_path / "out", 0.001)
    assert (packed.train_samples, packed.val_samples) == (2, 1)
    none = pack_text(folder, "*.txt", tmp_path / "none", 0.0)
    assert (none.train_samples, none.val_samples) == (3, 0)
