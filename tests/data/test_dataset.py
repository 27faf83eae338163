"""Rows and images by position, and what is said when the data is not as the recipe says."""

import io
import json
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe
from data.batch import step_slices
from data.catalog import open_catalog
from data.dataset import Dataset, open_dataset, read_micro_batch, unigram_entropy
from data.documents import EncodedDocuments
from data.images import decode_image, fit
from data.text_dataset import TextDataset
from data.tokenize import HuggingFaceTokenizer, open_tokenizer, vocab_size
from data.types import Ints, silent
from data.verify import verify

MakeRecipe = Callable[..., Recipe]
MakeShard = Callable[..., Path]


def _texts(shards: list[Path]) -> dict[str, bytes]:
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name.removesuffix(".txt")] = file.read()
    return found


def _stream(dataset: Dataset, rows: int) -> tuple[list[int], list[int]]:
    arrays = dataset.read(0, rows, rows).arrays
    return arrays["tokens_BT"].ravel().tolist(), arrays["targets_BT"].ravel().tolist()


def test_a_validation_pass_has_each_token_once_in_order(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    dataset = open_dataset(text_recipe(text_shards), "val")
    naive = [token for text in _texts(text_shards).values() for token in [*text, 256]]
    tokens, targets = _stream(dataset, dataset.count)
    padding = dataset.count * 16 - (len(naive) - 1)
    assert 0 <= padding < 16
    assert tokens == naive[:-1] + [256] * padding
    assert targets == naive[1:] + [-100] * padding


def _ranges(key: str) -> list[tuple[str, int, int]]:
    pieces = [re.fullmatch(r"(.*)\[(\d+):(\d+)\]", piece) for piece in key.split("|")]
    return [(piece[1], int(piece[2]), int(piece[3])) for piece in pieces if piece]


def test_each_token_is_a_target_once_in_a_pass(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.text_dataset.ROW_WINDOW_TOKENS", 300)
    ids = np.split(np.arange(2000, dtype=np.uint16), np.sort(np.random.default_rng(0).integers(0, 2000, 80)))
    shard = make_shard(tmp_path / "a.tar", {f"d{i}": {"npy": _save(array)} for i, array in enumerate(ids)})
    dataset = open_dataset(text_recipe([shard], context=17, kind="tokens", vocab=2000), "train")
    rows, targets = dataset.count, []
    assert rows == 2000 // 17
    for turn in range(3):
        found = dataset.read(turn * rows, (turn + 1) * rows, rows).arrays["targets_BT"].ravel().tolist()
        targets += found
        if turn == 0:
            assert len(set(found)) == rows * 17
    # Three epochs but for the first token and the last ones, which no row of three passes has as targets.
    times = Counter(targets)
    assert set(times.values()) <= {2, 3} and len(times) == 2000 and times.total() == 3 * rows * 17


def test_training_rows_cover_every_document_and_targets_are_the_next_tokens(
    text_shards: list[Path], text_recipe: MakeRecipe
) -> None:
    dataset, texts = open_dataset(text_recipe(text_shards), "train"), _texts(text_shards)
    arrays = dataset.read(0, dataset.count, dataset.count).arrays
    np.testing.assert_array_equal(arrays["targets_BT"][:, :-1], arrays["tokens_BT"][:, 1:])
    named = [(name, i) for key in dataset.keys(0, dataset.count) for name, a, b in _ranges(key) for i in range(a, b)]
    assert len(named) == len(set(named)) == dataset.count * 16
    assert sum(len(text) + 1 for text in texts.values()) - len(named) < 16
    passes = [dataset.keys(turn * dataset.count, (turn + 1) * dataset.count) for turn in range(2)]
    assert passes[0] != passes[1]


def test_a_batch_of_rows_comes_from_many_documents(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"file{i}": {"txt": bytes(12_000 + 97 * i)} for i in range(60)})
    dataset = open_dataset(text_recipe([shard], context=128), "train")
    for start in range(0, 320, 32):
        documents = {name for key in dataset.keys(start, start + 32) for name, _, _ in _ranges(key)}
        assert len(documents) > 10


def test_row_keys_name_the_tokens_of_the_row(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    dataset, texts = open_dataset(text_recipe(text_shards), "train"), _texts(text_shards)
    tokens_BT = dataset.read(3, 40, 37).arrays["tokens_BT"]
    for key, row in zip(dataset.keys(3, 40), tokens_BT.tolist(), strict=True):
        assert [token for name, a, b in _ranges(key) for token in [*texts[name], 256][a:b]] == row


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_global_batch_does_not_depend_on_workers_or_micro_size(
    kind: str, text_shards: list[Path], image_shard: Path, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> None:
    augment = {"crop_padding": 2, "flip": True}
    recipe = text_recipe(text_shards) if kind == "text" else image_recipe([image_shard], augment=augment)
    dataset = open_dataset(recipe, "train")

    def global_batch(micro: int, ranks: int) -> tuple[list[list[int]], list[str]]:
        batch = recipe.batch.model_copy(update={"micro": micro})
        pieces = [piece for rank in range(ranks) for piece in step_slices(9, batch, rank, ranks)]
        parts = [read_micro_batch(dataset, 9, piece, micro) for piece in sorted(pieces, key=lambda p: p.micro)]
        assert all(len(array) == micro for part in parts for array in part.arrays.values())
        arrays = [np.concatenate([p.arrays[name][: p.samples] for p in parts]).tolist() for name in parts[0].arrays]
        return arrays, [key for part in parts for key in part.keys]

    expected = global_batch(recipe.batch.global_, 1)
    for micro, ranks in ((1, 3), (2, 1), (2, 4), (4, 16)):
        assert global_batch(micro, ranks) == expected


def test_each_epoch_has_every_image_once_with_its_own_label(image_shard: Path, image_recipe: MakeRecipe) -> None:
    for cpus in (1, 3):
        dataset = open_dataset(image_recipe([image_shard], cpus), "train")
        arrays, keys = dataset.read(100, 200, 100).arrays, dataset.keys(100, 200)
        assert sorted(keys) == [f"i{i:03d}" for i in range(100)] != keys
        numbers = [int(key[1:]) for key in keys]
        assert arrays["images_BHWC"][:, 0, 0, 0].tolist() == numbers
        assert arrays["labels_B"].tolist() == [number % 10 for number in numbers]
        dataset.close()


def test_blanks_have_no_targets(
    text_shards: list[Path], image_shard: Path, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> None:
    text = open_dataset(text_recipe(text_shards), "train")
    rows = text.read(5, 7, 4)
    assert rows.targets == 32 and (rows.arrays["targets_BT"][2:] == -100).all()
    assert (rows.arrays["tokens_BT"][2:] == 256).all()
    assert text.read(5, 5, 4).targets == 0
    images = open_dataset(image_recipe([image_shard]), "val").read(98, 100, 5)
    assert images.targets == 2 and images.arrays["labels_B"].tolist() == [8, 9, -100, -100, -100]


def test_augmentation_follows_from_seed_epoch_and_sample(
    tmp_path: Path, make_shard: MakeShard, image_recipe: MakeRecipe
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels, colorsubsampling="444")
    shard = make_shard(tmp_path / "a.tar", {f"k{i}": {"jpg": jpeg, "cls": b"0"} for i in range(8)})
    for augment in ({"resized_crop": True}, {"crop_padding": 3}, {"flip": True}):
        recipe = image_recipe([shard], channels=3, augment=augment)
        first, again = (open_dataset(recipe, "train").read(0, 24, 24).arrays["images_BHWC"] for _ in range(2))
        np.testing.assert_array_equal(first, again)
        keys = open_dataset(recipe, "train").keys(0, 24)
        by_key = [{i.tobytes() for i, k in zip(first, keys, strict=True) if k == key} for key in set(keys)]
        assert max(map(len, by_key)) > 1  # the same sample differs between epochs
        assert len({image.tobytes() for image in first[:8]}) > 1  # the same image differs between samples
        assert len({image.tobytes() for image in open_dataset(recipe, "val").read(0, 8, 8).arrays["images_BHWC"]}) == 1


def test_jpegs_decode_as_pillow_decodes_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels)
    with Image.open(io.BytesIO(jpeg)) as image:
        np.testing.assert_array_equal(decode_image(jpeg, "jpg", 3), np.asarray(image))
    assert decode_image(jpeg, "jpg", 1).shape == (33, 47, 1)
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    assert decode_image(cmyk.getvalue(), "jpeg", 3).shape == (33, 47, 3)


@pytest.mark.parametrize("shape", [(10, 1), (1, 10), (224, 224), (500, 375)])
def test_any_image_is_fitted_to_the_square(shape: tuple[int, int]) -> None:
    assert fit(np.zeros((*shape, 3), np.uint8), 224).shape == (224, 224, 3)


def _save(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_token_arrays_of_any_integer_type_are_read_as_they_are(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    arrays = [
        np.arange(7, dtype="<u2"),
        np.zeros(0, np.int64),
        np.arange(50, dtype=">i4"),
        np.arange(3, dtype=np.uint8),
    ]
    shard = make_shard(tmp_path / "a.tar", {f"d{i}": {"npy": _save(array)} for i, array in enumerate(arrays)})
    recipe = text_recipe([shard], kind="tokens", vocab=50)
    for _ in range(2):  # the second time from the kept lengths
        tokens, _ = _stream(open_dataset(recipe, "val"), 4)
        assert tokens[:59] == [*range(7), *range(50), *range(3)][:59]
    with pytest.raises(DataError, match=r"a\.tar: sample d2: part npy has token id 49, outside 0 … 48"):
        _stream(open_dataset(text_recipe([shard], kind="tokens", vocab=49), "val"), 4)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (_save(np.zeros((2, 2), int)), "2 dimensions"),
        (_save(np.zeros(3)), "float64"),
        (b"junk", ""),
        (_save([1, 2])[:-1], "prom"),
    ],
)
def test_token_arrays_of_another_kind_are_refused(
    array: bytes, word: str, tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"good": {"npy": _save([1, 2])}, "bad": {"npy": array}})
    with pytest.raises(DataError, match=rf"a\.tar: sample bad: part npy is not .*{word}"):
        open_dataset(text_recipe([shard], kind="tokens", vocab=9), "train")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    vocab = {"<unk>": 0, "hello": 1, "world": 2, "</s>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(1)  # a setting of the file that must not shorten documents
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_hugging_face_tokenizer_is_read_from_its_file(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, tokenizer_file: Path
) -> None:
    texts = {f"t{i}": {"txt": b"hello world " * i + b"x"} for i in range(5)}
    recipe = text_recipe([make_shard(tmp_path / "a.tar", texts)], context=4, tokenizer=str(tokenizer_file))
    naive = [token for i in range(5) for token in [*[1, 2] * i, 0, 3]]
    said: list[str] = []
    for _ in range(2):
        tokens, targets = _stream(open_dataset(recipe, "val", said.append), 8)
        assert tokens[: len(naive) - 1] == naive[:-1] and targets[: len(naive) - 1] == naive[1:]
    assert len(said) == 1 and "tokenizing shard 1 of 1" in said[0]
    assert vocab_size(recipe) == 4
    assert open_tokenizer(str(tokenizer_file)).decode([1, 2]) == "hello world"


class _CountingTokenizer(HuggingFaceTokenizer):
    """Counts the documents it encodes, lengths apart."""

    encoded = 0

    def encode(self, text: bytes) -> Ints:
        self.encoded += 1
        return super().encode(text)


@pytest.mark.parametrize(("window_tokens", "document_words"), [(2000, 90), (2000, 3000), (10**6, 500)])
def test_each_document_is_encoded_about_once_per_group(
    window_tokens: int,
    document_words: int,
    tmp_path: Path,
    make_shard: MakeShard,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data.text_dataset.ROW_WINDOW_TOKENS", window_tokens)
    monkeypatch.setattr("data.documents.CACHED_TOKENS", 2 * window_tokens)
    texts = {f"t{i}": {"txt": b"hello " * (document_words + i)} for i in range(40)}
    catalog = open_catalog(str(make_shard(tmp_path / "a.tar", texts)), silent)
    tokenizer = _CountingTokenizer(tokenizer_file)
    documents = EncodedDocuments(catalog, "txt", tokenizer, silent)
    dataset = TextDataset(catalog, documents, context=8, window_bytes=10**5, seed=1)
    groups = -(-dataset.count * 8 // window_tokens)
    for start in range(dataset.count):
        dataset.read(start, start + 1, 1)
    assert 40 <= tokenizer.encoded <= 40 + groups + 1


def test_bad_tokenizers_and_text_are_named(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, tokenizer_file: Path
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"bad": {"txt": b"\xff"}})
    with pytest.raises(DataError, match=r"a\.tar: sample bad: part txt is not UTF-8"):
        open_dataset(text_recipe([shard], tokenizer=str(tokenizer_file)), "train")
    tokenizer_file.write_text(tokenizer_file.read_text().replace("</s>", "<stop>"))
    with pytest.raises(DataError, match=r"tokenizer\.json: no end-of-document token: add one of <\|endoftext\|>"):
        open_dataset(text_recipe([shard], tokenizer=str(tokenizer_file)), "train")
    tokenizer_file.write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizers file"):
        vocab_size(text_recipe([shard], tokenizer=str(tokenizer_file)))
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        open_tokenizer("none.json")


def test_bytes_survive_encoding_and_decoding() -> None:
    tokenizer = open_tokenizer("bytes")
    assert tokenizer.decode([*tokenizer.encode("Grüße".encode()).tolist(), 256]) == "Grüße"


def test_the_unigram_entropy_of_two_equal_letters_is_log_two(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"d": {"npy": _save(np.tile([5, 7], 32 * 16))}})
    dataset = open_dataset(text_recipe([shard], kind="tokens", vocab=9), "train")
    assert math.isclose(unigram_entropy(dataset), math.log(2))


def test_a_missing_part_is_named_at_once(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe, image_recipe: MakeRecipe
) -> None:
    shard = make_shard(
        tmp_path / "a.tar", {"ok": {"txt": b"x", "png": b"", "cls": b"1"}, "bare": {"md": b"x", "json": b""}}
    )
    for recipe, expected in ((text_recipe([shard]), "txt"), (image_recipe([shard]), "an image")):
        with pytest.raises(DataError) as caught:
            open_dataset(recipe, "train")
        message = str(caught.value)
        assert f"{shard}: sample bare has parts json, md" in message and f"needs {expected}" in message


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"png": b"nonsense", "cls": b"1"}, "part png (8 bytes) is not an image"),
        ({"jpg": b"\xff\xd8\xff", "cls": b"1"}, "part jpg (3 bytes) is not an image"),
        ({"cls": b"ten"}, "part cls is b'ten', not an integer"),
        ({"cls": b"10"}, "part cls is 10, outside 0 … 9"),
        ({"cls": b"-1"}, "part cls is -1, outside 0 … 9"),
    ],
)
def test_a_bad_image_or_label_is_named(
    parts: dict[str, bytes],
    words: str,
    tmp_path: Path,
    make_shard: MakeShard,
    image_recipe: MakeRecipe,
    png: Callable[[int], bytes],
) -> None:
    bad = parts if len(parts) == 2 else {"png": png(0), **parts}
    shard = make_shard(tmp_path / "a.tar", {"fine": {"png": png(1), "cls": b" 9\n"}, "bad": bad})
    recipe = image_recipe([shard])
    with pytest.raises(DataError) as caught:
        open_dataset(recipe, "val").read(0, 2, 2)
    message = str(caught.value)
    assert message.startswith(f"{shard}: sample bad: {words}") and "\n" not in message
    assert verify([str(shard)], recipe) == [message]


def test_verify_reports_every_problem(tmp_path: Path, make_shard: MakeShard, png: Callable[[int], bytes]) -> None:
    bad = make_shard(
        tmp_path / "a.tar", {"x": {"png": b"no", "cls": b"no"}, "y": {"txt": b"\xff"}, "z": {"png": png(1)}}
    )
    cut = tmp_path / "b.tar"
    cut.write_bytes(bad.read_bytes()[:700])
    problems = verify([str(bad), str(cut)], None)
    assert len(problems) == 4
    assert all(
        any(word in p for p in problems) for word in ("x: part png", "x: part cls", "y: part txt", "b.tar: trunc")
    )
    assert verify([str(make_shard(tmp_path / "c.tar", {"z": {"png": png(1)}}))], None) == []


def test_the_fingerprint_follows_the_data_not_the_folder(
    tmp_path: Path, make_shard: MakeShard, text_recipe: MakeRecipe
) -> None:
    times = count(10**9)

    def fingerprint(folder: str, key: str, text: bytes, part: str = "txt") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        shard = make_shard(tmp_path / folder / "a.tar", {key: {"txt": b"12", **{part: text}}})
        os.utime(shard, ns=(0, next(times)))
        return open_dataset(text_recipe([shard]), "train").fingerprint

    assert fingerprint("a", "k", b"12") == fingerprint("b", "k", b"12")
    assert (
        len({fingerprint("a", *other) for other in (("k", b"12"), ("j", b"12"), ("k", b"123"), ("k", b"12", "md"))}) > 3
    )


def test_a_recipe_without_validation_data_is_refused(text_shards: list[Path], text_recipe: MakeRecipe) -> None:
    recipe = text_recipe(text_shards, val=None)
    with pytest.raises(RecipeError, match=r"data\.val"):
        open_dataset(recipe, "val")
