"""Samples of several shards, read by number; numbers per sample stay with their shards."""

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.arrays import Ints
from data.index.catalog import Catalog
from data.index.column import Column
from data.index.open_catalog import open_catalog
from data.index.shuffle_blocks import GROUP_SAMPLES, split_into_blocks
from tests.support.data.memory_source import equal_blocks

MakeShard = Callable[..., Path]


def _texts(shards: list[Path]) -> list[bytes]:
    found = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found.append(file.read())
    return found


def _open(shards: list[Path]) -> Catalog:
    return open_catalog([str(shard) for shard in shards])


def test_samples_are_read_and_viewed_in_any_order(text_shards: list[Path]) -> None:
    catalog, texts = _open(text_shards), _texts(text_shards)
    part = catalog.required_part("txt")
    samples = np.random.default_rng(0).integers(0, len(texts), 600).tolist()  # some of them more than once
    assert [catalog.view(part, sample) for sample in samples] == [texts[sample] for sample in samples]
    assert [catalog.read(part, sample) for sample in samples] == [texts[sample] for sample in samples]


def test_a_piece_of_a_part_is_read_alone(text_shards: list[Path]) -> None:
    catalog, texts = _open(text_shards), _texts(text_shards)
    part = catalog.required_part("txt")
    longest = max(range(len(texts)), key=lambda sample: len(texts[sample]))
    assert catalog.read(part, longest, 3, 10) == texts[longest][3:10]


def test_a_sample_that_cannot_be_read_is_named(text_shards: list[Path]) -> None:
    catalog = _open(text_shards)
    part = catalog.required_part("txt")
    contents = bytearray(text_shards[2].read_bytes())
    contents[-20_000] ^= 1
    text_shards[2].write_bytes(contents)
    for read in (catalog.read, catalog.view):
        with pytest.raises(DataError) as caught:
            read(part, 100)
        named = re.match(r"(\S+): sample (\S+): \S", str(caught.value))
        assert named is not None
        assert named.groups() == (str(text_shards[2]), catalog.key(100))
        assert str(caught.value).count(str(text_shards[2])) == 1


def test_parts_that_some_shards_lack_have_size_minus_one(tmp_path: Path, make_shard: MakeShard) -> None:
    shards = [
        make_shard(tmp_path / "a.tar", {"x": {"txt": b"1"}, "y": {"txt": b"22", "md": b"333"}}),
        make_shard(tmp_path / "b.tar", {"z": {"txt": b"4444"}}),
    ]
    catalog = _open(shards)
    assert [catalog.part("md").sizes[sample] for sample in range(3)] == [-1, 3, -1]
    catalog.required_part("txt")
    catalog.require_one_of(["md", "txt"], "a text")
    with pytest.raises(DataError, match=r"a\.tar: sample x has parts txt, .* needs md \(2 of 3 samples lack it\)"):
        catalog.required_part("md")


def test_the_blocks_of_a_catalog_hold_the_bytes_of_its_samples(text_shards: list[Path]) -> None:
    catalog, texts = _open(text_shards), _texts(text_shards)
    blocks = catalog.blocks()
    assert blocks.shard.tolist() == [0, 1, 2, 2, 2] and blocks.samples.tolist() == [40, 1, 64, 64, 22]
    sizes = catalog.required_part("txt").sizes
    naive = [sum(map(len, texts[a : a + n])) for a, n in zip(blocks.first, blocks.samples, strict=True)]
    assert blocks.bytes.tolist() == naive == sizes.block_totals(blocks).tolist()
    assert sizes.total == sum(map(len, texts))


def test_a_column_is_like_the_array_of_all_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    counts = [3, 1, 500, 64, 130]
    tables: list[Ints] = [random.integers(0, 99, count) for count in counts]
    column, whole = Column(tables), np.concatenate(tables)
    ids = random.integers(0, len(whole), 1000)
    assert len(column) == len(whole) and column.total == whole.sum()
    assert column.take(ids).tolist() == whole[ids].tolist() == [column[i] for i in ids.tolist()]
    assert column.take(ids[:0]).tolist() == []
    blocks = equal_blocks(counts)
    assert column.block_totals(blocks).tolist() == np.add.reduceat(whole, blocks.first).tolist()
    monkeypatch.setattr("data.index.shuffle_blocks.MAX_BLOCKS", 6)
    groups = [np.ones(-(-count // GROUP_SAMPLES), np.int64) for count in counts]
    larger = split_into_blocks(np.array(counts), groups)
    assert len(larger.first) < len(blocks.first)
    assert column.block_totals(larger).tolist() == np.add.reduceat(whole, larger.first).tolist()


def test_names_with_a_dot_in_the_key_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(2100):
            tar.addfile(tarfile.TarInfo(f"img-{number}.{number:05d}.jpg"))
    with pytest.raises(DataError, match=r"its 2100 samples have 2100 different parts, as 00000\.jpg, .* first dot"):
        open_catalog(str(shard))
