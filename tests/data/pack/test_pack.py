"""Packing is deterministic, loses nothing, and webdataset reads what it writes."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError
from data.arrays import silent
from data.index.shard_index import read_kept_index
from data.pack.pack_plan import Inputs, plan_shards
from data.pack.packing_run import PackOptions, pack_shards
from data.pack.shard_writer import ShardLimits, tar_bytes, write_shard
from data.pack_inputs.examples import pack_digits
from data.pack_inputs.file_inputs import text_inputs
from data.pack_inputs.list_files import list_files
from data.pack_inputs.pack_kinds import pack_images, pack_text
from data.shards.local_shard import LocalShard
from tests.support.data.packed_folder import digests, read_split, tars


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


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9_-]{1,80}", fullmatch=True),
        st.dictionaries(st.sampled_from(["jpg", "cls", "seg.png"]), st.binary(max_size=1600), min_size=1),
        max_size=8,
    )
)
def test_a_shard_is_what_tarfile_would_write(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, dict[str, bytes]]
) -> None:
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, parts in samples.items():
            for part, contents in parts.items():
                header = tarfile.TarInfo(f"{key}.{part}")
                header.size = len(contents)
                tar.addfile(header, io.BytesIO(contents))
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    written = write_shard(path, samples.items())
    assert path.read_bytes() == expected.getvalue()
    assert (written.bytes, written.samples) == (len(expected.getvalue()), len(samples))


def test_every_text_is_packed_once_and_webdataset_reads_it(tmp_path: Path, texts: Path) -> None:
    packed = pack_text(texts, "**/*.txt", tmp_path / "out", 0.2, ShardLimits(bytes=8000))
    train, val = read_split(tmp_path / "out", "train"), read_split(tmp_path / "out", "val")
    assert (len(train), len(val), packed.skipped) == (packed.train_samples, packed.val_samples, 2)
    assert 3 < len(val) < 25
    assert not set(train) & set(val)
    expected = sorted(p.read_bytes() for p in texts.rglob("*.txt") if p.name not in ("latin.txt", "empty.txt"))
    assert sorted(sample["txt"] for sample in [*train.values(), *val.values()]) == expected
    assert packed.shards == len(tars(tmp_path / "out")) > 4


def test_the_manifest_counts_and_sums_what_is_there(tmp_path: Path, texts: Path) -> None:
    packed = pack_text(texts, "**/*.txt", tmp_path / "out", 0.2, ShardLimits(samples=20))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {entry["name"]: entry["sha256"] for entry in manifest["shards"]} == digests(tmp_path / "out", "*.tar")
    assert manifest["train"] == {
        "samples": packed.train_samples,
        "bytes": sum(path.stat().st_size for path in (tmp_path / "out").glob("train-*.tar")),
        "shards": len(list((tmp_path / "out").glob("train-*.tar"))),
    }
    assert manifest["skipped"]["count"] == 2
    assert sorted(entry["name"] for entry in manifest["skipped"]["first"]) == ["empty.txt", "latin.txt"]
    assert (manifest["kind"], manifest["parts"], manifest["inputs"]["count"]) == ("text", ["txt"], 64)


def test_a_shard_stays_within_its_limits_unless_one_sample_is_larger(tmp_path: Path, texts: Path) -> None:
    (texts / "long.txt").write_text("x" * 30_000)
    pack_text(texts, "**/*.txt", tmp_path / "out", 0.0, ShardLimits(bytes=20_480, samples=7))
    for shard in tars(tmp_path / "out"):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
        assert len(members) == 1 or (shard.stat().st_size <= 20_480 and len(members) <= 7)


def test_shards_whose_inputs_are_all_left_out_leave_no_gap_in_the_numbers(tmp_path: Path, texts: Path) -> None:
    packed = pack_text(texts, "*.txt", tmp_path / "out", 0.0, ShardLimits(samples=1))
    assert [p.name for p in tars(tmp_path / "out")] == ["train-000000.tar", "train-000001.tar"]
    assert (packed.train_samples, packed.skipped) == (len(read_split(tmp_path / "out", "train")), 2) == (2, 2)
    for shard in tars(tmp_path / "out"):
        assert read_kept_index(LocalShard(shard)) is not None


def test_adding_files_moves_no_other_between_train_and_val(tmp_path: Path, texts: Path) -> None:
    pack_text(texts, "**/*.txt", tmp_path / "before", 0.3)
    for i in range(100, 180):
        (texts / f"new-{i}.txt").write_text(f"new {i}")
    pack_text(texts, "**/*.txt", tmp_path / "after", 0.3)
    for split in ("train", "val"):
        before, after = read_split(tmp_path / "before", split), read_split(tmp_path / "after", split)
        assert {sample["txt"] for sample in before.values()} < {sample["txt"] for sample in after.values()}


def test_output_below_the_input_is_not_packed_itself(tmp_path: Path, texts: Path) -> None:
    (texts / "out.partial").mkdir()
    pack_text(texts, "**/*", texts / "out", 0.0)
    contents = [sample["txt"] for sample in read_split(texts / "out", "train").values()]
    assert len(contents) == 62
    (texts / "notes").mkdir()
    (texts / "notes" / "more.txt").write_text("more")
    assert pack_text(texts, "**/*", tmp_path / "again", 0.0).skipped > 2  # OUT of another packing is input like any


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=60), st.integers(2000, 9000), st.integers(1, 20))
def test_every_input_is_planned_once(sizes: list[int], shard_bytes: int, shard_samples: int) -> None:
    count = len(sizes)
    archived = np.array([tar_bytes([size]) for size in sizes])
    order, draws = np.random.default_rng(0).permutation(count), np.linspace(0, 0.99, count)
    inputs = Inputs("text", {}, archived, order, draws, "", "", lambda numbers: pytest.fail("planning reads nothing"))
    shards = plan_shards(inputs, 0.3, ShardLimits(shard_bytes, shard_samples))
    assert sorted(np.concatenate([shard.inputs for shard in shards]).tolist()) == list(range(count))
    assert {n for shard in shards if shard.split == "val" for n in shard.inputs} == set(np.flatnonzero(draws < 0.3))
    for shard in shards:
        assert len(shard.inputs) == 1 or archived[shard.inputs].sum() + 1024 <= shard_bytes
        assert len(shard.inputs) <= shard_samples


def test_existing_output_is_not_overwritten_and_mistakes_leave_nothing(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(DataError, match="out: already exists"):
        pack_text(texts, "**/*.txt", tmp_path / "out", 0.2)
    with pytest.raises(DataError, match=r"no file matches \*\.rst"):
        pack_text(texts, "*.rst", tmp_path / "new", 0.2)
    with pytest.raises(DataError, match=r"no sample is left to train on .* the first: latin.txt, not UTF-8 at byte 0"):
        pack_text(texts, "latin.txt", tmp_path / "new", 0.0)
    with pytest.raises(DataError, match="all 64 inputs go to val"):
        pack_text(texts, "**/*.txt", tmp_path / "new", 1.0)
    with pytest.raises(DataError, match="only local folders"):
        pack_text(texts, "**/*.txt", Path("s3://bucket/shards"), 0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "texts"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["kept"]


def test_images_keep_their_bytes_and_are_numbered_by_class(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "in" / name / f"{i}.PNG").write_bytes(png(100 * label + i))
    (tmp_path / "in" / "bee" / "notes.md").touch()
    packed = pack_images(tmp_path / "in", tmp_path / "out", 0.0)
    found = read_split(tmp_path / "out", "train")
    assert (len(found), packed.val_samples, packed.skipped) == (20, 0, 1)
    assert {(s["cls"], s["png"]) for s in found.values()} == {
        (b"%d" % c, png(100 * c + i)) for c in (0, 1) for i in range(10)
    }
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["ant", "bee"]
    assert list(found)[:10] != sorted(found)[:10]


def test_images_are_numbered_by_the_classes_given_and_checked_on_request(
    tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    (tmp_path / "in" / "bee").mkdir(parents=True)
    (tmp_path / "in" / "bee" / "good.png").write_bytes(png(7))
    (tmp_path / "in" / "bee" / "cut.png").write_bytes(png(7)[:40])
    packed = pack_images(tmp_path / "in", tmp_path / "out", 0.0, classes=["ant", "bee"], check=True)
    assert (packed.train_samples, packed.skipped) == (1, 1)
    assert [s["cls"] for s in read_split(tmp_path / "out", "train").values()] == [b"1"]
    with pytest.raises(DataError, match="bee: not among the 1 classes given"):
        pack_images(tmp_path / "in", tmp_path / "no", 0.0, classes=["ant"])


def test_links_to_files_are_packed_and_those_to_folders_or_nowhere_are_left_out_and_told(
    tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    (tmp_path / "in" / "ant").mkdir(parents=True)
    (tmp_path / "in" / "ant" / "a.png").write_bytes(png(1))
    (tmp_path / "in" / "ant" / "b.png").symlink_to("a.png")
    (tmp_path / "in" / "ant" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "ant" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "bee").symlink_to("ant")
    packed = pack_images(tmp_path / "in", tmp_path / "out", 0.0)
    assert (packed.train_samples, packed.skipped) == (2, 3)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]["first"]
    assert [(left_out["name"], left_out["reason"].partition(" (")[0]) for left_out in told] == [
        ("ant/gone.png", "a link that leads nowhere"),
        ("ant/loop.png", "a link that leads nowhere"),
        ("bee", "a link to a folder, which is not entered"),
    ]


def test_the_digits_are_split_evenly_by_class(tmp_path: Path) -> None:
    packed = pack_digits(tmp_path / "digits")
    assert (packed.train_samples, packed.val_samples) == (1438, 359)
    labels = [int(s["cls"]) for s in read_split(tmp_path / "digits", "val").values()]
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


def test_a_file_that_changes_while_packing_is_named(tmp_path: Path, texts: Path) -> None:
    listing = list_files(texts, "*.txt", [], silent)
    inputs = text_inputs(listing, {}, None)
    (texts / "a.b.txt").write_text("longer than it was")
    with pytest.raises(DataError, match=r"a\.b\.txt: was 5 bytes and is 18 now"):
        pack_shards(inputs, tmp_path / "out", 0.0, ShardLimits(), PackOptions())
    assert not (tmp_path / "out.partial").exists()
