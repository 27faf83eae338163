"""Rows of tables and arrays become samples, once each, and mistakes are named."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import tokenizers

from configs.errors import DataError
from data.pack.packing_run import PackOptions
from data.pack.shard_writer import ShardLimits
from data.pack_inputs.pack_kinds import pack_arrays, pack_table, pack_text, read_classes
from data.pack_inputs.table_inputs import Columns
from data.pack_inputs.token_arrays import ArraySplit
from data.text.tokenizer import HuggingFaceTokenizer
from tests.support.data.packed_folder import digests, read_split

TEXTS = [f'text {i}, "quoted"\nnext line é' * (i % 7 + 1) for i in range(200)]


def _all(out: Path) -> list[dict[str, bytes]]:
    train, val = read_split(out, "train"), read_split(out, "val")
    assert not set(train) & set(val)
    return [*train.values(), *val.values()]


def _csv(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def _parquet(path: Path, columns: dict[str, object], row_group_size: int = 30) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_column_of_text_becomes_a_sample_per_row_at_any_number_of_workers(tmp_path: Path, kind: str) -> None:
    table = tmp_path / f"data.{kind}"
    if kind == "csv":
        _csv(table, ["id", "text"], [[i, text] for i, text in enumerate(TEXTS)])
    elif kind == "tsv":
        with table.open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([["id", "text"], *enumerate(TEXTS)])
    elif kind == "jsonl":
        _jsonl(table, [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    else:
        _parquet(table, {"id": list(range(len(TEXTS))), "text": pa.array(TEXTS).dictionary_encode()})
    columns, limits = Columns(text="text", parts=["json=id"]), ShardLimits(bytes=60_000)
    for workers in (1, 2):
        packed = pack_table(table, columns, tmp_path / f"out-{workers}", 0.2, limits, PackOptions(workers))
    assert digests(tmp_path / "out-1") == digests(tmp_path / "out-2")
    assert packed.shards > 4
    assert 15 < packed.val_samples < 70
    found = {int(sample["json"]): sample["txt"].decode() for sample in _all(tmp_path / "out-1")}
    assert found == dict(enumerate(TEXTS))
    assert len(_all(tmp_path / "out-1")) == len(TEXTS)


def test_rows_added_move_no_other_between_train_and_val(tmp_path: Path) -> None:
    for name, count in (("before", 100), ("after", 200)):
        _jsonl(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS[:count]])
        pack_table(tmp_path / "data.jsonl", Columns(), tmp_path / name, 0.3)
    for split in ("train", "val"):
        before, after = read_split(tmp_path / "before", split), read_split(tmp_path / "after", split)
        assert before.items() < after.items()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_of_images_packs_the_files_it_names_with_numbered_classes(
    tmp_path: Path, png: Callable[[int], bytes], kind: str
) -> None:
    (tmp_path / "in").mkdir()
    rows = [(f"{i}.png", ["cat", "ant", "bee"][i % 3]) for i in range(60)]
    for i, (name, _) in enumerate(rows):
        (tmp_path / "in" / name).write_bytes(png(i))
    table = tmp_path / "in" / f"m.{kind}"
    if kind == "csv":
        _csv(table, ["path", "label"], [list(row) for row in rows])
    elif kind == "jsonl":
        _jsonl(table, [{"path": path, "label": label} for path, label in rows])
    else:
        _parquet(table, {"path": [path for path, _ in rows], "label": [label for _, label in rows]})
    pack_table(table, Columns(), tmp_path / "out", 0.1)
    assert read_classes(tmp_path / "out" / "classes.json") == ["ant", "bee", "cat"]
    expected = {(png(i), b"%d" % ["ant", "bee", "cat"].index(label)) for i, (_, label) in enumerate(rows)}
    assert {(sample["png"], sample["cls"]) for sample in _all(tmp_path / "out")} == expected
    if kind != "parquet":
        keys = list(read_split(tmp_path / "out", "train"))
        assert keys != sorted(keys)  # a table sorted by class makes mixed shards


def test_images_embedded_in_parquet_keep_their_bytes_and_numbers_stay_labels(
    tmp_path: Path, png: Callable[[int], bytes]
) -> None:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(50)]
    _parquet(tmp_path / "a.parquet", {"image": images, "label": [i % 4 for i in range(50)]})
    pack_table(tmp_path / "a.parquet", Columns(), tmp_path / "out", 0.0)
    assert [(s["png"], s["cls"]) for s in _all(tmp_path / "out")] == [(png(i), b"%d" % (i % 4)) for i in range(50)]
    assert not (tmp_path / "out" / "classes.json").exists()


def test_lists_of_tokens_are_kept_as_narrow_integers(tmp_path: Path) -> None:
    lists = [list(range(i % 5, i % 5 + 20)) for i in range(40)]
    _parquet(tmp_path / "a.parquet", {"ids": lists})
    _jsonl(tmp_path / "a.jsonl", [{"ids": ids} for ids in lists])
    for name in ("a.parquet", "a.jsonl"):
        packed = pack_table(tmp_path / name, Columns(tokens="ids", vocab=70_000), tmp_path / f"{name}-out", 0.0)
        found = [_array(sample["npy"]) for sample in _all(tmp_path / f"{name}-out")]
        assert [ids.tolist() for ids in found] == lists
        assert {ids.dtype for ids in found} == {np.dtype("<u4")}
        assert packed.tokens == 800
    with pytest.raises(DataError, match=r"a\.jsonl row 1: column ids holds token id 19, but ids are 0 … 9"):
        pack_table(tmp_path / "a.jsonl", Columns(tokens="ids", vocab=10), tmp_path / "no", 0.0)


def test_a_folder_of_tables_is_one_table(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "in" / f"p{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        _parquet(folder / f"{number}.parquet", {"text": TEXTS[50 * number : 50 * (number + 1)]}, row_group_size=7)
    limits = ShardLimits(bytes=30_000)
    pack_table(tmp_path / "in", Columns(), tmp_path / "out", 0.1, limits)
    assert sorted(sample["txt"].decode() for sample in _all(tmp_path / "out")) == sorted(TEXTS)
    _jsonl(tmp_path / "in" / "x.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"in: holds tables of 2 kinds \(\.jsonl, \.parquet\)"):
        pack_table(tmp_path / "in", Columns(), tmp_path / "no", 0.1)


def test_empty_values_and_text_that_is_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", [{"text": "good"}, {"text": ""}, {"text": None}, {"text": "\ud800"}, {"text": "fine"}])
    packed = pack_table(tmp_path / "a.jsonl", Columns(), tmp_path / "out", 0.0)
    assert (packed.train_samples, packed.skipped) == (2, 3)
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]["first"]
    assert [entry["reason"] for entry in skipped] == ["text is empty", "text is empty", "not UTF-8 at byte 0"]


def test_rows_with_an_empty_cell_are_left_out_and_counted(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    _csv(tmp_path / "m.csv", ["path", "label"], [["a.png", "cat"], ["", "ant"], ["a.png", ""], ["a.png", "ant"]])
    packed = pack_table(tmp_path / "m.csv", Columns(), tmp_path / "out", 0.0)
    assert (packed.train_samples, packed.skipped) == (2, 2)
    assert sorted(sample["cls"] for sample in _all(tmp_path / "out")) == [b"0", b"1"]
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]["first"]
    assert {entry["reason"] for entry in skipped} == {"path is empty", "label is empty"}


def test_it_is_said_when_no_sample_is_left_for_val(tmp_path: Path) -> None:
    said: list[str] = []
    _jsonl(tmp_path / "a.jsonl", [{"text": "alone"}])
    pack_table(tmp_path / "a.jsonl", Columns(), tmp_path / "out", 0.1, options=PackOptions(say=said.append))
    assert said[-1] == f"{tmp_path / 'out'}: no sample is left for val, though val_fraction is 0.1: pack more inputs"
    pack_table(tmp_path / "a.jsonl", Columns(), tmp_path / "train", 0.0, options=PackOptions(say=said.append))
    assert "val_fraction" not in said[-1]


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    model = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(TEXTS, trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_tokens_are_those_of_the_tokenizer_with_an_end_of_document(tmp_path: Path, tokenizer_file: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        columns, limits = Columns(text="body"), ShardLimits(bytes=50_000)
        packed = pack_table(tmp_path / "a.jsonl", columns, out, 0.0, limits, PackOptions(workers), str(tokenizer_file))
    assert digests(tmp_path / "out-1") == digests(tmp_path / "out-2")
    tokenizer = HuggingFaceTokenizer(tokenizer_file)
    found = [_array(sample["npy"]) for sample in _all(tmp_path / "out-1")]
    assert {ids.dtype for ids in found} == {np.dtype("<u2")}
    for ids, text in zip(found, TEXTS, strict=True):
        assert ids.tolist() == [*tokenizer.encode(text.encode()).tolist(), tokenizer.end_of_document]
    manifest = json.loads((tmp_path / "out-1" / "manifest.json").read_text())
    assert (manifest["tokenizer"], manifest["vocab"]) == (tokenizer.identity, tokenizer.vocab_size)
    assert manifest["train"]["tokens"] == packed.tokens == sum(map(len, found))


def test_bytes_of_files_become_tokens(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("hé")
    pack_text(tmp_path / "in", "*.txt", tmp_path / "out", 0.0, tokenizer="bytes")
    [sample] = _all(tmp_path / "out")
    assert _array(sample["npy"]).tolist() == [104, 195, 169, 256]


def _array(contents: bytes) -> npt.NDArray[np.unsignedinteger]:
    array: npt.NDArray[np.unsignedinteger] = np.load(io.BytesIO(contents), allow_pickle=False)
    return array


def test_arrays_of_a_folder_are_documents(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(20):
        np.save(tmp_path / "in" / f"{i}.npy", np.arange(i, i + 10 * (i % 3), dtype=np.int64))
    packed = pack_arrays(tmp_path / "in", ArraySplit(), tmp_path / "out", 0.0)
    found = sorted(_array(sample["npy"]).tolist() for sample in _all(tmp_path / "out"))
    assert found == sorted(list(range(i, i + 10 * (i % 3))) for i in range(20) if i % 3)
    assert packed.skipped == 7
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["vocab"] == 37


def test_one_long_array_is_cut_after_documents_or_into_rows(tmp_path: Path) -> None:
    tokens = np.array([5, 6, 0, 0, 7, 8, 9, 0, 3], np.uint16)
    np.save(tmp_path / "a.npy", tokens)
    np.save(tmp_path / "b.npy", tokens.reshape(3, 3))
    for name, cuts, expected in (
        ("a.npy", ArraySplit(end_of_document=0), [[5, 6, 0], [0], [7, 8, 9, 0], [3]]),
        ("a.npy", ArraySplit(row_tokens=4), [[5, 6, 0, 0], [7, 8, 9, 0], [3]]),
        ("b.npy", ArraySplit(), [[5, 6, 0], [0, 7, 8], [9, 0, 3]]),
    ):
        out = tmp_path / f"out-{len(expected)}-{name}"
        pack_arrays(tmp_path / name, cuts, out, 0.0)
        assert [_array(sample["npy"]).tolist() for sample in _all(out)] == expected
    with pytest.raises(DataError, match="one of one dimension needs --end-of-document ID, or --rows TOKENS"):
        pack_arrays(tmp_path / "a.npy", ArraySplit(), tmp_path / "no", 0.0)
    with pytest.raises(DataError, match=r"a\.npy: tokens 0 … 8 holds token id 9, but ids are 0 … 8"):
        pack_arrays(tmp_path / "a.npy", ArraySplit(row_tokens=9), tmp_path / "no", 0.0, vocab=9)
    with pytest.raises(DataError, match=r"d\.npy: cannot be read \(No such file or directory\)"):
        pack_arrays(tmp_path / "d.npy", ArraySplit(row_tokens=9), tmp_path / "no", 0.0)
    np.save(tmp_path / "c.npy", np.zeros(4))
    with pytest.raises(DataError, match="not an array of integers"):
        pack_arrays(tmp_path / "c.npy", ArraySplit(row_tokens=2), tmp_path / "no", 0.0)
    np.save(tmp_path / "e.npy", np.array([1, 1 << 63], np.uint64))
    with pytest.raises(DataError, match="token ids up to 9223372036854775808: expected ids below 2³²"):
        pack_arrays(tmp_path / "e.npy", ArraySplit(row_tokens=2), tmp_path / "no", 0.0)


MISTAKES: list[tuple[str, str, Columns, str]] = [
    ("a.csv", "a,b\n1,2\n3\n", Columns(text="a"), r"a\.csv row 2 \(byte 8\) has 1 fields, but the header names 2"),
    ("a.csv", "a,a\n1,2\n", Columns(text="a"), "the header names a column twice"),
    ("a.csv", 'a,b\n1,"2\n', Columns(text="a"), "not what its name says"),
    ("a.csv", "a,b\n1,2\n", Columns(text="c"), "no column c; it has a, b: correct the option"),
    ("a.csv", "a,b\n", Columns(text="a"), "no rows"),
    ("a.csv", "", Columns(), "the file is empty"),
    ("a.jsonl", "", Columns(), "the file is empty"),
    ("a.csv", "a,b\n1,2\n", Columns(), "has columns a, b: choose with --text"),
    ("a.csv", "path,label\nx.png,1\n", Columns(), r"row 1: .*x\.png, named in column path, does not exist"),
    ("a.csv", "a,b\n1,2\n", Columns(text="a", parts=["txt=b"]), "part txt would be made of two columns"),
    ("a.csv", "a,b\n1,2\n", Columns(text="a", parts=["TXT"]), "--part TXT: expected EXT=COLUMN"),
    ("a.csv", "a,b\n1,2\n", Columns(tokens="a"), "--tokens needs --vocab"),
    ("a.csv", "a,b\n1,2\n", Columns(text="a", classes=["x"]), "--classes without --label has no meaning"),
    ("a.csv", "a,b\n1,2\n", Columns(text="a", label="b", classes=["x"]), "row 1: column b is '2', which is not among"),
    ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', Columns(), r"row 2: no column text; it has body"),
    ("a.jsonl", '{"text": "x"}\n{"text": \n', Columns(), r"row 2 \(byte 14\): Expecting value"),
    ("a.jsonl", '{"text": "x"}\n[1]\n', Columns(), "a JSON object with columns was expected, found list"),
    ("a.jsonl", '{"text": "x", "n": -1}\n', Columns(text="text", label="n"), "column n is -1, expected a class or a n"),
    ("a.parquet", "not parquet", Columns(text="a"), "not a Parquet file"),
    ("a.jsonl.gz", "x", Columns(), r"unknown kind \(decompress it first\): expected one of \.csv"),
]


@pytest.mark.parametrize(("name", "contents", "columns", "message"), MISTAKES)
def test_mistakes_are_named_and_leave_nothing(
    tmp_path: Path, name: str, contents: str, columns: Columns, message: str
) -> None:
    (tmp_path / name).write_text(contents)
    with pytest.raises(DataError, match=message):
        pack_table(tmp_path / name, columns, tmp_path / "out", 0.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]
