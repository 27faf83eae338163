"""Documents as tokens, whatever they are stored as: how long each is, and its tokens by range."""

from typing import Protocol

import numpy as np

from configs.errors import DataError
from configs.recipe import TextData, TokensData
from data import npy, sidecar
from data.catalog import Catalog
from data.document_cache import DocumentCache
from data.row_order import ROW_WINDOW_TOKENS
from data.tokenize import ByteTokenizer, HuggingFaceTokenizer, open_tokenizer
from data.types import Array, Ints, Say

BATCH_DOCUMENTS = 256
# Two groups of rows: a group may share long documents with its neighbours.
CACHED_TOKENS = 2 * ROW_WINDOW_TOKENS


class Documents(Protocol):
    """`lengths[sample]` in tokens; `identity` changes when the tokens of the same shards change."""

    @property
    def identity(self) -> str: ...
    @property
    def lengths(self) -> Ints: ...
    @property
    def blank(self) -> int: ...  # fills rows that are not trained on
    def read(self, sample: int, first: int, last: int) -> Ints: ...


class ByteDocuments:
    """Bytes are tokens, so any range is read directly."""

    def __init__(self, catalog: Catalog, part: str) -> None:
        self.identity = f"bytes {part}"
        self.blank = ByteTokenizer.end_of_document
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self.lengths: Ints = self._part.sizes + 1

    def read(self, sample: int, first: int, last: int) -> Ints:
        """Tokens first … last-1; the last one of the document is end of document."""
        text_bytes = int(self._part.sizes[sample])
        ids = ByteTokenizer().encode(self._catalog.read(self._part, sample, first, min(last, text_bytes)))
        return np.append(ids, self.blank) if last > text_bytes else ids


class EncodedDocuments:
    """Text through a Hugging Face tokenizer; lengths are worked out once per shard and kept beside it."""

    def __init__(self, catalog: Catalog, part: str, tokenizer: HuggingFaceTokenizer, say: Say) -> None:
        self.identity = f"{tokenizer.identity} {part}"
        self.blank = tokenizer.end_of_document
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self._tokenizer = tokenizer
        self._encoded = DocumentCache(self._encode, CACHED_TOKENS)
        name = f"len-{tokenizer.identity[:16]}-{part}"
        tables = [self._shard_lengths(shard, name, say) for shard in range(len(catalog.shards))]
        self.lengths: Ints = np.concatenate(tables)

    def read(self, sample: int, first: int, last: int) -> Ints:
        """Tokens first … last-1 of the document, end of document included."""
        return self._encoded.read(sample)[first:last].astype(np.int64)

    def _encode(self, sample: int) -> Ints:
        try:
            ids = self._tokenizer.encode(self._catalog.read(self._part, sample))
        except UnicodeDecodeError as error:
            raise self._not_text(sample, error) from error
        return np.append(ids, self.blank)

    def _shard_lengths(self, shard: int, name: str, say: Say) -> Ints:
        path, stamp = self._catalog.shards[shard], self._catalog.indexes[shard].stamp
        kept = sidecar.load(path, name, stamp)
        if kept is not None:
            return kept["lengths"]
        say(f"tokenizing shard {shard + 1} of {len(self._catalog.shards)} to learn its lengths (once): {path}")
        lengths = self._count(int(self._catalog.starts[shard]), int(self._catalog.starts[shard + 1]))
        sidecar.save(path, name, stamp, {"lengths": lengths}, say)
        return lengths

    def _count(self, start: int, stop: int) -> Ints:
        lengths: list[int] = []
        for first in range(start, stop, BATCH_DOCUMENTS):
            samples = range(first, min(first + BATCH_DOCUMENTS, stop))
            texts = [self._catalog.read(self._part, sample) for sample in samples]
            for sample, text in zip(samples, texts, strict=True):
                self._check_text(sample, text)
            lengths += self._tokenizer.lengths(texts)
        return np.array(lengths, np.int64) + 1

    def _check_text(self, sample: int, text: bytes) -> None:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise self._not_text(sample, error) from error

    def _not_text(self, sample: int, error: UnicodeDecodeError) -> DataError:
        return DataError(
            f"{self._catalog.where(sample)}: part {self._part.name} is not UTF-8 at byte {error.start}: "
            "convert the text, or use tokenizer: bytes"
        )


class ArrayDocuments:
    """Token ids made elsewhere, used as they are: no end of document is added."""

    def __init__(self, catalog: Catalog, part: str, vocab: int, say: Say) -> None:
        self.identity = f"tokens {part}"
        self.blank = 0
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self._vocab = vocab
        tables = [self._shard_headers(shard, f"npy-{part}", say) for shard in range(len(catalog.shards))]
        self.lengths: Ints = np.concatenate([table["lengths"] for table in tables])
        self._dtypes = np.concatenate([table["dtypes"] for table in tables])

    def read(self, sample: int, first: int, last: int) -> Ints:
        """Tokens first … last-1 of the document. DataError when one is not in 0 … vocab-1."""
        dtype = self._dtypes[sample].decode()
        place = npy.byte_range(int(self._part.sizes[sample]), int(self.lengths[sample]), dtype, first, last)
        ids = npy.parse(self._catalog.read(self._part, sample, *place), dtype)
        outside = ids[(ids < 0) | (ids >= self._vocab)]
        if outside.size:
            raise DataError(
                f"{self._catalog.where(sample)}: part {self._part.name} has token id {outside[0]}, "
                f"outside 0 … {self._vocab - 1}: correct data.vocab or the shards"
            )
        return ids.astype(np.int64)

    def _shard_headers(self, shard: int, name: str, say: Say) -> dict[str, Array]:
        path, stamp = self._catalog.shards[shard], self._catalog.indexes[shard].stamp
        kept = sidecar.load(path, name, stamp)
        if kept is None:
            say(f"reading the array headers of shard {shard + 1} of {len(self._catalog.shards)} (once): {path}")
            samples = range(int(self._catalog.starts[shard]), int(self._catalog.starts[shard + 1]))
            lengths, dtypes = zip(*map(self._header, samples), strict=True)
            kept = {"lengths": np.array(lengths, np.int64), "dtypes": np.array(dtypes, np.bytes_)}
            sidecar.save(path, name, stamp, kept, say)
        return kept

    def _header(self, sample: int) -> tuple[int, str]:
        size = int(self._part.sizes[sample])
        start = self._catalog.read(self._part, sample, 0, min(size, npy.MAX_HEADER_BYTES))
        try:
            return npy.parse_header(start, size)
        except ValueError as error:
            raise DataError(
                f"{self._catalog.where(sample)}: part {self._part.name} is not a one-dimensional array of integers "
                f"({error}): save it with numpy.save"
            ) from error


def open_documents(catalog: Catalog, data: TextData | TokensData, say: Say) -> Documents:
    """Documents as the recipe reads them. DataError: a sample lacks the part, or it is not what the recipe says."""
    if data.kind == "tokens":
        return ArrayDocuments(catalog, data.part, data.vocab, say)
    tokenizer = open_tokenizer(data.tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return EncodedDocuments(catalog, data.part, tokenizer, say)
    return ByteDocuments(catalog, data.part)
