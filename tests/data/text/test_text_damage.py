"""Documents that cannot be read: what is blank, what is told, and what other runs see."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from data.index.open_catalog import open_catalog
from data.shards.shard import CHECKED_BYTES
from data.source import Skipped
from data.text.text_source import TextSource
from tests.support.data.token_sources import (
    PACKINGS,
    MakeRecipe,
    MakeShard,
    open_source,
    ranges,
    read,
    read_all,
    save,
    write_tokenizer,
)

TEXT_BYTES = 1000
TAR_BYTES = 1536  # header and text, padded


def flip(shard: Path, offset: int) -> None:
    """Another byte at `offset`, the file's time unchanged."""
    times = shard.stat()
    with shard.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x80]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (save(np.zeros((2, 2), int)), "2 dimensions"),
        (save(np.zeros(3)), "float64"),
        (b"junk", ""),
        (save([1, 2])[:-1], "prom"),
    ],
)
def test_token_arrays_of_another_kind_are_refused_or_left_out(
    array: bytes, word: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"bad": {"npy": array}, "good": {"npy": save([1, 2, 3])}})
    refused = rf"a\.tar: sample bad: part npy is not .*{word}"
    with pytest.raises(DataError, match=refused):
        open_source(text_recipe([shard], kind="tokens", vocab=9))
    said: list[str] = []
    recipe = text_recipe([shard], context=3, kind="tokens", vocab=9, on_error="skip")
    source = open_source(recipe, None, said.append)
    assert len(said) == 2 and re.search("1 of 2 documents cannot be read .*" + refused, said[1])
    arrays, skipped = read(source, range(source.count))
    assert arrays["tokens_BT"].tolist() == [[0, 1, 2]] and arrays["targets_BT"].tolist() == [[-100, 2, 3]]
    assert [(skip.shard, skip.key) for skip in skipped] == [(str(shard), "bad")]
    with pytest.raises(DataError, match=refused):
        open_source(text_recipe([shard], kind="tokens", vocab=9))


@pytest.mark.parametrize("data", PACKINGS)
def test_a_damaged_block_leaves_its_documents_blank_and_nothing_else(
    data: dict[str, Any], tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    texts = {f"t{i:03d}": {"txt": bytes([97 + i % 26]) * TEXT_BYTES} for i in range(500)}
    shard = make_shard(tmp_path / "a.tar", texts)
    recipe = text_recipe([shard], context=700, lanes=4, on_error="skip", **data)
    source = open_source(recipe)
    expected, keys = read_all(source, 64)[0], source.keys(np.arange(source.count))
    flip(shard, CHECKED_BYTES + 5000)
    arrays, skipped = read_all(open_source(recipe), 1)

    def is_damaged(name: str, first: int, last: int) -> bool:
        start = int(name[1:]) * TAR_BYTES + 512
        stop = start + min(last + 1, TEXT_BYTES)
        return first < TEXT_BYTES and start + first < 2 * CHECKED_BYTES and stop > CHECKED_BYTES

    runs_on = data["packing"] == "concat" and not data["document_mask"]
    for row, key in enumerate(keys):
        at, damaged = 0, []
        for name, first, last in ranges(key):
            if is_damaged(name, first, last):
                damaged.append(name)
                expected["tokens_BT"][row, at : at + last - first] = 256
                expected["targets_BT"][row, max(0, at - runs_on) : at + last - first] = -100
            at += last - first
        if runs_on and expected["tokens_BT"][row, -1] == 256 and arrays["targets_BT"][row, -1] == -100:
            expected["targets_BT"][row, -1] = -100  # of the next document, which is damaged, it has this alone
        assert [skip.key for skip in skipped[row]] == damaged
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    causes = {(skip.shard, skip.cause.partition(":")[0]) for found in skipped for skip in found}
    assert causes == {(str(shard), f"bytes {CHECKED_BYTES} to {2 * CHECKED_BYTES - 1} are not those that were indexed")}
    again, together = read_all(open_source(recipe), 7)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert [skip for found in together for skip in found] == [skip for found in skipped for skip in found]
    with pytest.raises(DataError, match=r"a\.tar: sample t\d+: bytes 262144 to 524287 are not those"):
        read_all(open_source(text_recipe([shard], context=700, **data)), 8)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_text_that_cannot_be_read_is_left_out_in_every_process_until_it_is_mended(
    packing: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    texts = {f"t{i}": {"txt": b"hello " * (5 + i)} for i in range(6)}
    shard = make_shard(tmp_path / "a.tar", texts | {"t3": {"txt": b"hello \xff"}})
    skip, stop = (
        text_recipe([shard], context=8, tokenizer=str(tokenizer_file), packing=packing, on_error=on_error)
        for on_error in ("skip", "stop")
    )
    said: list[str] = []
    source = open_source(skip, None, said.append)
    cause = "part txt is not UTF-8 at byte 6: convert the text, or use tokenizer: bytes"
    assert said[1:] == [f"1 of 6 documents cannot be read and are left out: first {shard}: sample t3: {cause}"]
    arrays, skipped = read(source, range(source.count))
    assert skipped == ([Skipped(str(shard), "t3", cause)] if packing == "concat" else [])
    ones = [int((arrays[name] == 1).sum()) for name in ("tokens_BT", "targets_BT")]
    words = sum(5 + i for i in (0, 1, 2, 4, 5))
    assert ones == ([words, words - 2] if packing == "concat" else [words, words - 5])
    assert open_source(skip, None).keys(np.arange(source.count)) == source.keys(np.arange(source.count))
    with pytest.raises(DataError, match="sample t3: part txt is not UTF-8"):
        open_source(stop)
    assert open_source(skip, None).fingerprint == source.fingerprint, "a run that stopped changed nothing"
    make_shard(shard, texts)
    mended = open_source(stop, None)
    assert mended.fingerprint != source.fingerprint
    assert not read(mended, range(mended.count))[1]


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_document_left_out_is_back_in_the_first_run_after_its_shard_is_mended(
    kind: str, packing: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    samples = {
        f"d{i}": {"npy": save(np.full(CHECKED_BYTES, 1, np.uint8)), "txt": b"hello " * (CHECKED_BYTES // 6)}
        for i in range(3)
    }
    shard = make_shard(tmp_path / "a.tar", samples)
    data = {"vocab": 3} if kind == "tokens" else {"tokenizer": str(tokenizer_file)}
    skip, stop = (
        text_recipe([shard], context=1 << 16, kind=kind, on_error=on_error, packing=packing, **data)
        for on_error in ("skip", "stop")
    )

    def learnt(source: TextSource) -> tuple[int, list[Skipped]]:
        arrays, skipped = read(source, range(source.count))
        return int((arrays["targets_BT"] >= 0).sum()), skipped

    open_catalog([str(shard)])
    second = shard.read_bytes().index(f"d1.{'npy' if kind == 'tokens' else 'txt'}".encode())
    flip(shard, second + 600)
    during = open_source(skip, None)
    again = open_source(skip, None)
    assert again.fingerprint == during.fingerprint and again.count == during.count
    targets, skipped = learnt(again)
    assert [skip.key for skip in skipped] == (["d1"] if packing == "concat" else [])
    assert all("are not those that were indexed" in skip.cause for skip in skipped)
    flip(shard, second + 600)
    whole = open_source(skip, None)
    length = CHECKED_BYTES if kind == "tokens" else CHECKED_BYTES // 6 + 1
    lost = length - 1 + (2 if packing == "concat" else 0)  # one before and one after it
    assert learnt(whole) == (targets + lost, [])
    assert whole.fingerprint != again.fingerprint, "its rows hold other tokens"
    assert open_source(stop, None).fingerprint == open_source(skip, None).fingerprint == whole.fingerprint
