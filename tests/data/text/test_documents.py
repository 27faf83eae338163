"""Documents as tokens: bytes, a tokenizer's, or arrays."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from data.arrays import Ints
from data.text import best_fit_packing
from data.text.document_cache import DocumentCache
from data.text.tokenizer import HuggingFaceTokenizer, open_tokenizer, vocab_size
from tests.support.data.token_sources import MakeRecipe, MakeShard, open_source, read, save, write_tokenizer


def test_token_arrays_of_any_integer_type_are_read_as_they_are(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    arrays = [
        np.arange(7, dtype="<u2"),
        np.zeros(0, np.int64),
        np.arange(50, dtype=">i4"),
        np.arange(3, dtype=np.uint8),
    ]
    shard = make_shard(tmp_path / "a.tar", {f"d{i}": {"npy": save(array)} for i, array in enumerate(arrays)})
    for _ in range(2):  # the second time from the kept lengths
        source = open_source(text_recipe([shard], kind="tokens", vocab=50), seed=None)
        assert read(source, range(4))[0]["tokens_BT"].ravel().tolist()[:59] == [*range(7), *range(50), 0, 1]
    source = open_source(text_recipe([shard], kind="tokens", vocab=49), seed=None)
    with pytest.raises(DataError, match=r"a\.tar: sample d2: part npy has token id 49, outside 0 … 48"):
        read(source, range(4))


def test_a_hugging_face_tokenizer_is_read_from_its_file(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    texts = {f"t{i}": {"txt": b"hello world " * i + b"x"} for i in range(5)}
    recipe = text_recipe([make_shard(tmp_path / "a.tar", texts)], context=4, tokenizer=str(tokenizer_file))
    naive = [token for i in range(5) for token in [*[1, 2] * i, 0, 3]]
    said: list[str] = []
    for _ in range(2):
        source = open_source(recipe, None, said.append)
        arrays, _ = read(source, range(source.count))
        assert arrays["tokens_BT"].ravel().tolist()[: len(naive) - 1] == naive[:-1]
        assert arrays["targets_BT"].ravel().tolist()[: len(naive) - 1] == naive[1:]
    assert len(said) == 1 and "lengths of shard 1 of 1" in said[0]
    assert vocab_size(recipe) == 4
    assert open_tokenizer(str(tokenizer_file)).decode([1, 2]) == "hello world"


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize(("window_tokens", "document_words"), [(2000, 90), (2000, 3000), (10**6, 500)])
def test_each_document_is_encoded_about_once_per_pass(
    packing: str,
    window_tokens: int,
    document_words: int,
    tmp_path: Path,
    make_shard: MakeShard,
    text_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    for place in ("concat_packing", "text_source"):
        monkeypatch.setattr(f"data.text.{place}.ROW_WINDOW_TOKENS", window_tokens)
    monkeypatch.setattr(best_fit_packing, "SEGMENT_TOKENS", window_tokens // 2)
    monkeypatch.setattr(best_fit_packing, "SEGMENT_ROWS", 1)
    texts = {f"t{i}": {"txt": b"hello " * (document_words + i)} for i in range(40)}
    recipe = text_recipe(
        [make_shard(tmp_path / "a.tar", texts)], 8, tokenizer=str(tokenizer_file), packing=packing, lanes=2
    )
    source = open_source(recipe)
    encoded: list[str] = []
    original = HuggingFaceTokenizer.encode_many

    def encode_many(self: HuggingFaceTokenizer, texts: list[str]) -> list[Ints]:
        encoded.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(HuggingFaceTokenizer, "encode_many", encode_many)
    groups = -(-source.count * 8 // window_tokens)
    for start in range(0, source.count, 2):
        read(source, range(start, min(start + 2, source.count)))
    # Twice only where two groups, or two lanes, share a document.
    assert 40 <= len(encoded) <= 40 + 2 * groups + 2


@pytest.mark.parametrize("lanes", [1, 64])
def test_long_documents_stay_only_while_they_are_read(lanes: int) -> None:
    encoded: list[int] = []

    def encode(sample: int) -> Ints:
        encoded.append(sample)
        return np.zeros(1000, np.int64)

    cache = DocumentCache(encode, 4000, lanes)
    for sample in range(300):
        cache.read(sample)
    assert sum(sample not in cache.missing([sample]) for sample in range(300)) == 4, "4000 tokens, whatever the lanes"
    encoded.clear()
    for _ in range(50):  # rows of as many documents as there are lanes, in turn
        for sample in range(1000, 1000 + lanes):
            cache.read(sample)
    assert len(encoded) <= 2 * lanes
    for sample in range(2000, 2300):
        cache.read(sample)
    assert sum(sample not in cache.missing([sample]) for sample in range(2000, 2300)) <= max(4, lanes)


def test_another_tokenizers_library_that_gives_other_tokens_is_refused(
    tmp_path: Path,
    make_shard: MakeShard,
    text_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    shard = make_shard(tmp_path / "a.tar", {f"t{i}": {"txt": b"hello " * 30} for i in range(3)})
    source = open_source(text_recipe([shard], tokenizer=str(tokenizer_file)))
    monkeypatch.setattr(HuggingFaceTokenizer, "encode_many", lambda self, texts: [np.zeros(29, np.int64)] * len(texts))
    with pytest.raises(DataError, match=r"sample t\d: the tokenizer gives 29 tokens, where it gave 30"):
        read(source, range(2))


def test_bad_tokenizers_and_text_are_named(tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe) -> None:
    tokenizer_file = write_tokenizer(tmp_path)
    shard = make_shard(tmp_path / "a.tar", {"bad": {"txt": b"\xff"}})
    recipe = text_recipe([shard], tokenizer=str(tokenizer_file))
    with pytest.raises(DataError, match=r"a\.tar: sample bad: part txt is not UTF-8"):
        open_source(recipe)
    tokenizer_file.write_text(tokenizer_file.read_text().replace("</s>", "<stop>"))
    with pytest.raises(DataError, match=r"tokenizer\.json: no end-of-document token: add one of <\|endoftext\|>"):
        open_source(recipe)
    tokenizer_file.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizers file"):
        vocab_size(recipe)
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        open_tokenizer("none.json")


def test_bytes_survive_encoding_and_decoding() -> None:
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.decode([*tokenizer.encode("Grüße".encode()).tolist(), 256]) == "Grüße"
