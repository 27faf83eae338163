"""Rows of tokens against the texts themselves, however they are asked for."""

import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from data.arrays import Ints
from data.text import best_fit_packing
from tests.support.data.token_sources import (
    PACKINGS,
    MakeRecipe,
    MakeShard,
    open_source,
    ranges,
    read,
    save,
    write_tokenizer,
)

Tokens = dict[str, list[int]]


def byte_tokens(shards: list[Path]) -> Tokens:
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name.removesuffix(".txt")] = [*file.read(), 256]
    return found


def expected_row(key: str, texts: Tokens, context: int, runs_on: bool) -> tuple[list[int], list[int], list[int]]:
    """Tokens, targets and documents as the key tells; where a row runs on, it does not tell the last target."""
    tokens: list[int] = []
    targets: list[int] = []
    documents: list[int] = []
    for number, (name, first, last) in enumerate(ranges(key)):
        if runs_on and number:
            targets[-1] = texts[name][0]
        tokens += texts[name][first:last]
        targets += texts[name][first + 1 : last + 1]
        targets += [-100] * (len(tokens) - len(targets))
        documents += [number] * (last - first)
    blanks = context - len(tokens)
    return tokens + [256] * blanks, targets + [-100] * blanks, documents + [-1] * blanks


@pytest.mark.parametrize("data", PACKINGS)
@pytest.mark.parametrize("lanes", [1, 4])
def test_rows_are_what_their_keys_name_and_each_input_comes_once_per_pass(
    data: dict[str, Any], lanes: int, text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    source, texts = open_source(text_recipe(text_shards, lanes=lanes, **data)), byte_tokens(text_shards)
    runs_on = data["packing"] == "concat" and not data["document_mask"]
    passes = [range(turn * source.count, (turn + 1) * source.count) for turn in range(2)]
    for items in passes:
        keys, (arrays, skipped) = source.keys(np.array(items)), read(source, items)
        assert not skipped
        for key, tokens, targets in zip(keys, arrays["tokens_BT"].tolist(), arrays["targets_BT"].tolist(), strict=True):
            row = expected_row(key, texts, 16, runs_on)
            assert tokens == row[0]
            told = 15 if runs_on else 16  # the last target may be the first token of a document without inputs here
            assert targets[:told] == row[1][:told]
        if data["document_mask"]:
            assert arrays["documents_BT"].tolist() == [expected_row(key, texts, 16, runs_on)[2] for key in keys]
        named = [(name, i) for key in keys for name, first, last in ranges(key) for i in range(first, last)]
        assert len(named) == len(set(named))
        if data["packing"] == "best_fit":
            assert len(named) == sum(len(text) - 1 for text in texts.values())
        else:
            assert len(named) == 16 * source.count > sum(map(len, texts.values())) - 16
    assert source.keys(np.array(passes[0])) != source.keys(np.array(passes[1]))
    assert ("documents_BT" in source.blank(1)) == data["document_mask"]


def test_a_validation_pass_of_concatenated_rows_has_each_token_once_in_order(
    text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    source = open_source(text_recipe(text_shards), seed=None)
    naive = [token for text in byte_tokens(text_shards).values() for token in text]
    arrays, _ = read(source, range(source.count))
    padding = source.count * 16 - (len(naive) - 1)
    assert 0 <= padding < 16
    assert arrays["tokens_BT"].ravel().tolist() == naive[:-1] + [256] * padding
    assert arrays["targets_BT"].ravel().tolist() == naive[1:] + [-100] * padding


def test_a_validation_pass_of_fitted_rows_is_in_shard_order(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    source = open_source(text_recipe(text_shards, packing="best_fit"), seed=None)
    first = [ranges(key)[0][0] for key in source.keys(np.arange(source.count))]
    assert first == sorted(first) and len(set(first)) > 50


@pytest.mark.parametrize("data", PACKINGS)
def test_rows_are_the_same_however_they_are_asked_for(
    data: dict[str, Any], text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    recipe = text_recipe(text_shards, lanes=2, **data)
    whole, _ = read(open_source(recipe), range(600))
    source = open_source(recipe)
    shuffled = np.random.default_rng(0).permutation(600)
    arrays = source.blank(600)
    threads = [
        threading.Thread(target=lambda rows=rows: source.fill(rows, rows, arrays)) for rows in np.split(shuffled, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, array in whole.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_lane_reads_few_shards_and_the_batch_many(
    packing: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_fit_packing, "SEGMENT_TOKENS", 1000)
    monkeypatch.setattr(best_fit_packing, "SEGMENT_ROWS", 10)
    shards = [
        make_shard(tmp_path / f"{n}.tar", {f"{n}-{i}": {"txt": bytes(40 + (7 * i) % 23)} for i in range(200)})
        for n in range(8)
    ]
    source = open_source(text_recipe(shards, context=64, lanes=8, packing=packing))
    keys = source.keys(np.arange(source.count))
    for lane in range(8):
        assert len({name[0] for key in keys[lane::8] for name, _, _ in ranges(key)}) <= 2
    assert len({ranges(key)[0][0][0] for key in keys[:8]}) == 8


def test_a_batch_of_rows_comes_from_many_documents(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"file{i}": {"txt": bytes(12_000 + 97 * i)} for i in range(60)})
    for packing in ("concat", "best_fit"):
        source = open_source(text_recipe([shard], context=128, packing=packing))
        for start in range(0, 320, 32):
            documents = {name for key in source.keys(np.arange(start, start + 32)) for name, _, _ in ranges(key)}
            assert len(documents) > 10


def test_rows_are_packed_once_per_shard(
    text_shards: list[Path], text_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = text_recipe(text_shards, packing="best_fit")
    first = open_source(recipe).keys(np.arange(50))

    def refuse(lengths: Ints, row_tokens: int) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(best_fit_packing, "pack_best_fit", refuse)
    assert open_source(recipe).keys(np.arange(50)) == first
    with pytest.raises(AssertionError, match="packed again"):
        open_source(text_recipe(text_shards, context=32, packing="best_fit"))


def test_the_fingerprint_follows_packing_and_tokenizer(
    tmp_path: Path, text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    base: dict[str, Any] = {}
    others = ({"packing": "best_fit"}, {"tokenizer": str(tokenizer_file)})
    prints = [open_source(text_recipe(text_shards, **data)).fingerprint for data in (base, base, *others)]
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_shards_without_a_pair_of_tokens_are_refused(
    packing: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"npy": save(np.zeros(1, int))}, "b": {"npy": save(np.zeros(0, int))}})
    with pytest.raises(DataError, match=r"a\.tar: .* in 2 samples, where a row needs at least 2"):
        open_source(text_recipe([shard], kind="tokens", vocab=9, packing=packing))


def test_a_set_smaller_than_a_row_fills_it_several_times_or_leaves_it_blank(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"npy": save([1, 2, 3])}})
    concat, fitted = (
        open_source(text_recipe([shard], context=8, kind="tokens", vocab=9, packing=packing))
        for packing in ("concat", "best_fit")
    )
    assert concat.count == fitted.count == 1
    assert read(concat, [0])[0]["tokens_BT"].tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert read(fitted, [1])[0]["targets_BT"].tolist() == [[2, 3] + [-100] * 6]
