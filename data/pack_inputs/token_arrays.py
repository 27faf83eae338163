"""Arrays of token ids made elsewhere -> inputs of packing, part npy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.arrays import Array, Ints, Say
from data.draws import uniforms
from data.pack.pack_plan import Inputs, LeftOut, PackJob, Sample, digest_of, unique_keys
from data.pack.shard_writer import tar_bytes
from data.pack_inputs.file_inputs import file_inputs
from data.pack_inputs.list_files import Listing, list_files, report_count
from data.pack_inputs.table_fields import narrow_ids
from data.pack_inputs.text_part import TOKENS_PART, npy_bytes, token_dtype

__all__ = ["ArraySplit"]


_SCANNED = 16 << 20  # elements at once
_NPY_HEADER_BYTES = 128


@dataclass(frozen=True)
class ArraySplit:
    """How one long array is made into samples: after each id `end_of_document`, or every `row_tokens` tokens."""

    end_of_document: int | None = None
    row_tokens: int | None = None


@dataclass(frozen=True)
class ArrayJob:
    """Spans of the tokens of arrays: (key, file, first token, end)."""

    folder: Path
    spans: list[tuple[str, str, int, int]]
    vocab: int

    def samples(self) -> Iterator[Sample | LeftOut]:
        """A sample per span, ids as uint16 or uint32. DataError: an id is not below `vocab`."""
        name, tokens = "", np.empty(0, np.int64)
        for key, wanted, first, end in self.spans:
            if wanted != name:
                name, tokens = wanted, _opened(self.folder / wanted).reshape(-1)
            if first == end:
                yield LeftOut(wanted, "empty")
                continue
            ids = narrow_ids(f"{self.folder / name}: tokens {first} … {end - 1}", tokens[first:end], self.vocab)
            yield Sample(key, {TOKENS_PART: npy_bytes(ids)}, end - first)


def array_inputs(path: Path, split: ArraySplit, vocab: int | None, without: Sequence[Path], say: Say) -> Inputs:
    """A sample per .npy file of a folder, or per document or row of one .npy file, whose rows keep their order.

    Without `vocab` all tokens are read to find the highest. DataError: not integers, or no way to cut is given.
    """
    if path.is_dir():
        return _folder_inputs(list_files(path, "**/*.npy", without, say), split, vocab, say)
    return _file_inputs(path, split, vocab, say)


def _folder_inputs(listing: Listing, split: ArraySplit, vocab: int | None, say: Say) -> Inputs:
    if split != ArraySplit():
        raise DataError(f"{listing.folder}: each file is a document: leave out --end-of-document and --rows")
    lengths, highest = [], 0
    for name in report_count(listing.names, say, f"reading the arrays of {listing.folder}"):
        tokens = _opened(listing.folder / name)
        if tokens.ndim != 1:
            raise DataError(
                f"{listing.folder / name}: {tokens.ndim} dimensions, expected the tokens of one document; "
                "an array with a sample per row is packed alone, by its own name"
            )
        lengths.append(len(tokens))
        highest = max(highest, _highest(tokens)) if vocab is None else highest
    ids = vocab or highest + 1
    keys = unique_keys(listing.names)

    def job(numbers: Ints) -> PackJob:
        return ArrayJob(listing.folder, [(keys[n], listing.names[n], 0, lengths[n]) for n in numbers], ids)

    archived = [tar_bytes([_NPY_HEADER_BYTES + length * token_dtype(ids).itemsize]) for length in lengths]
    return file_inputs("arrays", {"vocab": vocab}, listing, archived, job, {"vocab": ids})


def _file_inputs(path: Path, split: ArraySplit, vocab: int | None, say: Say) -> Inputs:
    tokens = _opened(path)
    ids = vocab or _highest(tokens) + 1
    bounds = _bounds(path, tokens, split)
    say(f"{path}: {tokens.size} tokens in {len(bounds) - 1} samples")
    name = unique_keys([path.name])[0]
    lengths = np.diff(bounds)

    def job(numbers: Ints) -> PackJob:
        spans = zip(numbers.tolist(), bounds[numbers].tolist(), bounds[numbers + 1].tolist(), strict=True)
        return ArrayJob(path.parent, [(f"{name}-{n:08d}", path.name, first, end) for n, first, end in spans], ids)

    archived = [tar_bytes([_NPY_HEADER_BYTES + length * token_dtype(ids).itemsize]) for length in lengths.tolist()]
    return Inputs(
        kind="arrays",
        options={"vocab": vocab, "end_of_document": split.end_of_document, "row_tokens": split.row_tokens},
        sizes=np.array(archived, np.int64),
        order=np.arange(len(lengths)),
        draws=uniforms(len(lengths), ("pack", "val", path.name)),
        digest=digest_of([path.name, path.stat().st_size, tokens.dtype.str]),
        modified=digest_of([path.stat().st_mtime_ns]),
        job=job,
        facts={"vocab": ids},
    )


def _bounds(path: Path, tokens: Array, split: ArraySplit) -> Ints:
    """Where samples start, and the end of the last."""
    given = (split.end_of_document is not None) + (split.row_tokens is not None)
    if tokens.ndim == 2 and given == 0:
        rows: Ints = np.arange(tokens.shape[0] + 1, dtype=np.int64) * tokens.shape[1]
        return rows
    if tokens.ndim != 1 or given != 1:
        raise DataError(
            f"{path}: {tokens.ndim} dimensions and {given} ways to cut: an array of two dimensions has a sample per "
            "row; one of one dimension needs --end-of-document ID, or --rows TOKENS"
        )
    if split.row_tokens is not None:
        return np.append(np.arange(0, len(tokens), split.row_tokens, dtype=np.int64), len(tokens))
    assert split.end_of_document is not None
    chunks = range(0, len(tokens), _SCANNED)
    ends = [np.flatnonzero(tokens[at : at + _SCANNED] == split.end_of_document) + at + 1 for at in chunks]
    found: Ints = np.unique(np.concatenate([[0], *ends, [len(tokens)]])).astype(np.int64)
    return found


def _highest(tokens: Array) -> int:
    flat = tokens.reshape(-1)
    return max((int(flat[at : at + _SCANNED].max()) for at in range(0, len(flat), _SCANNED)), default=0)


def _opened(path: Path) -> Array:
    """Mapped, not read. DataError: it is not an array of integers."""
    try:
        tokens: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path}: not a .npy file ({error}): correct the path") from error
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind not in "iu":
        raise DataError(f"{path}: not an array of integers: name one of token ids")
    return tokens
