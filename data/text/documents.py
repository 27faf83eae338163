"""Documents as tokens, whatever they are stored as: how long each is, and its tokens by range."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from configs.errors import DamagedDataError, DataError
from configs.sections.data_section import TextData, TokensData
from data.arrays import Array, Ints, Say
from data.index.catalog import Catalog
from data.index.column import Column
from data.index.shuffle_blocks import ShuffleBlocks
from data.order.row_order import ROW_WINDOW_TOKENS
from data.text import npy
from data.text.document_cache import DocumentCache
from data.text.document_lengths import DocumentLengths, MeasuredLengths, OnUnreadable
from data.text.tokenizer import ByteTokenizer, HuggingFaceTokenizer, open_tokenizer

__all__ = ["open_documents"]


BATCH_DOCUMENTS = 256  # given to the tokenizer at once, which encodes them on all cores


@dataclass(frozen=True)
class ReadWindow:
    """The rows of a long document are read within about `window_tokens` of each other, over all lanes."""

    window_tokens: int = ROW_WINDOW_TOKENS
    lanes: int = 1


class Documents(Protocol):
    """`identity` changes when the tokens of the same shards change, `stamp` when the lengths of one shard do."""

    @property
    def identity(self) -> str:
        """The tokenizer, the part, and which documents cannot be read: it enters the fingerprint."""

    @property
    def name(self) -> str:
        """Of files kept beside shards."""

    @property
    def lengths(self) -> DocumentLengths:
        """Tokens of each document, by sample id."""

    @property
    def blank(self) -> int:
        """The token that fills what is not trained on."""

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Sample -> why its length cannot be known."""

    @property
    def window_tokens(self) -> int | None:
        """Rows of a long document, which is read as a whole, lie within so many tokens; None: it is read by range."""

    def shard_lengths(self, shard: int) -> Ints:
        """Tokens of the samples of one shard."""

    def stamp(self, shard: int) -> str:
        """What files derived from the lengths of this shard are kept under."""

    def prepare(self, samples: Iterable[int]) -> None:
        """These are about to be read."""

    def read(self, sample: int, first: int, last: int) -> Array:
        """Tokens first … last-1 of a document, of any integer type. DataError when they cannot be read."""


class _TextLengths:
    """A token per byte, and end of document."""

    def __init__(self, sizes: Column) -> None:
        self._sizes = sizes

    def __getitem__(self, sample: int) -> int:
        return self._sizes[sample] + 1

    def take(self, samples: Ints) -> Ints:
        return self._sizes.take(samples) + 1

    def block_totals(self, blocks: ShuffleBlocks) -> Ints:
        return self._sizes.block_totals(blocks) + blocks.samples


class ByteDocuments:
    """Bytes are tokens, so any range is read directly."""

    window_tokens = None
    unreadable: Mapping[int, str] = MappingProxyType({})

    def __init__(self, catalog: Catalog, part: str) -> None:
        self.identity = f"bytes {part}"
        self.name = f"bytes-{part}"
        self.blank = ByteTokenizer.end_of_document
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self.lengths: DocumentLengths = _TextLengths(self._part.sizes)

    def shard_lengths(self, shard: int) -> Ints:
        """A token per byte, and end of document."""
        return self._part.sizes.tables[shard] + 1

    def stamp(self, shard: int) -> str:
        """The digest of the shard's index: lengths follow from its contents alone."""
        return self._catalog.indexes[shard].digest

    def prepare(self, samples: Iterable[int]) -> None:
        """Nothing to do."""

    def read(self, sample: int, first: int, last: int) -> Array:
        """Tokens first … last-1; the last one of the document is end of document."""
        text_bytes = self._part.sizes[sample]
        text = self._catalog.read(self._part, sample, first, min(last, text_bytes)) if first < text_bytes else b""
        ids = np.frombuffer(text, np.uint8)
        # End of document is 256, which a byte cannot hold.
        return np.append(ids.astype(np.uint16), self.blank) if last > text_bytes else ids


class EncodedDocuments:
    """Text through a Hugging Face tokenizer, which must be run to know a document's length."""

    def __init__(
        self,
        catalog: Catalog,
        part: str,
        tokenizer: HuggingFaceTokenizer,
        read_window: ReadWindow,
        raises: bool,
        say: Say,
    ) -> None:
        self.name = f"len-{tokenizer.identity[:16]}-{part}"
        self.blank = tokenizer.end_of_document
        self.window_tokens = read_window.window_tokens
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self._tokenizer = tokenizer
        # Two windows: one may share long documents with the next.
        self._encoded = DocumentCache(self._encode, 2 * read_window.window_tokens, read_window.lanes)
        self._measured = MeasuredLengths(catalog, self.name, self._measure, raises, say)
        self.identity = f"{tokenizer.identity} {part}{self._measured.identity}"
        self.lengths = self._measured.columns["lengths"]
        self.stamp = self._measured.stamp
        self.unreadable: Mapping[int, str] = self._measured.unreadable

    def shard_lengths(self, shard: int) -> Ints:
        """Tokens of each sample of the shard; 1 where it cannot be read."""
        return self.lengths.tables[shard]

    def prepare(self, samples: Iterable[int]) -> None:
        """Encode those that are not kept from before, on all cores."""
        texts = {}
        for sample in self._encoded.missing(samples):
            with suppress(DataError):  # which reading it raises again
                texts[sample] = self._text(sample)
        if len(texts) > 1:
            for sample, ids in zip(texts, self._tokenizer.encode_many(list(texts.values())), strict=True):
                with suppress(DataError):
                    self._encoded.keep(sample, self._with_end(sample, ids))

    def read(self, sample: int, first: int, last: int) -> Array:
        """Tokens first … last-1, int32. DataError: unreadable, or not of the length that it had."""
        return self._encoded.read(sample)[first:last]

    def _encode(self, sample: int) -> Array:
        self._measured.refuse_unreadable(sample)
        return self._with_end(sample, self._tokenizer.encode_many([self._text(sample)])[0])

    def _with_end(self, sample: int, ids: Array) -> Array:
        # Lengths decide what lies in which row: another one would move all tokens behind it.
        if len(ids) + 1 != self.lengths[sample]:
            raise DataError(
                f"{self._catalog.where(sample)}: the tokenizer gives {len(ids)} tokens, where it gave "
                f"{self.lengths[sample] - 1} when the shard was first read (another version of the tokenizers "
                f"library?): remove the files *{self.name}* beside the shard"
            )
        return np.append(ids, self.blank)

    def _measure(self, samples: range, on_unreadable: OnUnreadable) -> dict[str, Array]:
        # End of document; a document that cannot be read has this token alone.
        lengths = np.ones(len(samples), np.int64)
        for first in range(0, len(samples), BATCH_DOCUMENTS):
            texts: dict[int, str] = {}
            for sample in samples[first : first + BATCH_DOCUMENTS]:
                try:
                    texts[sample] = self._text(sample)
                except DamagedDataError as error:
                    on_unreadable(sample, error)
            for sample, ids in zip(texts, self._tokenizer.encode_many(list(texts.values())), strict=True):
                lengths[sample - samples.start] += len(ids)
        return {"lengths": lengths}

    def _text(self, sample: int) -> str:
        contents = self._catalog.read(self._part, sample)
        try:
            return contents.decode()
        except UnicodeDecodeError as error:
            raise DamagedDataError(
                f"{self._catalog.where(sample)}: part {self._part.name} is not UTF-8 at byte {error.start}: "
                "convert the text, or use tokenizer: bytes"
            ) from error


class ArrayDocuments:
    """Token ids made elsewhere, used as they are: no end of document is added."""

    window_tokens = None

    def __init__(self, catalog: Catalog, part: str, vocab: int, raises: bool, say: Say) -> None:
        self.name = f"npy-{part}"
        self.blank = 0
        self._catalog = catalog
        self._part = catalog.required_part(part)
        self._vocab = vocab
        self._measured = MeasuredLengths(catalog, self.name, self._measure, raises, say)
        self.identity = f"tokens {part}{self._measured.identity}"
        self.lengths = self._measured.columns["lengths"]
        self._dtypes = self._measured.columns["dtypes"]
        self.stamp = self._measured.stamp
        self.unreadable: Mapping[int, str] = self._measured.unreadable

    def shard_lengths(self, shard: int) -> Ints:
        """Tokens of each sample of the shard; 1 where it cannot be read."""
        return self.lengths.tables[shard]

    def prepare(self, samples: Iterable[int]) -> None:
        """Nothing to do."""

    def read(self, sample: int, first: int, last: int) -> Array:
        """Tokens first … last-1 of the document. DataError when one is not in 0 … vocab-1."""
        self._measured.refuse_unreadable(sample)
        dtype = npy.DTYPES[self._dtypes[sample]]
        place = npy.byte_range(self._part.sizes[sample], self.lengths[sample], dtype, first, last)
        ids = npy.parse_elements(self._catalog.read(self._part, sample, *place), dtype)
        # The model's embedding would fail on it too, without naming the sample, and on a GPU for good.
        if len(ids) and (int(ids.max()) >= self._vocab or int(ids.min()) < 0):
            outside = ids[(ids < 0) | (ids >= self._vocab)]
            raise DamagedDataError(
                f"{self._catalog.where(sample)}: part {self._part.name} has token id {outside[0]}, "
                f"outside 0 … {self._vocab - 1}: correct data.vocab or the shards"
            )
        return ids

    def _measure(self, samples: range, on_unreadable: OnUnreadable) -> dict[str, Array]:
        lengths, dtypes = np.ones(len(samples), np.int64), np.zeros(len(samples), np.uint8)
        for number, sample in enumerate(samples):
            try:
                lengths[number], dtype = self._header(sample)
            except DamagedDataError as error:
                on_unreadable(sample, error)
            else:
                dtypes[number] = npy.DTYPES.index(dtype)
        return {"lengths": lengths, "dtypes": dtypes}

    def _header(self, sample: int) -> tuple[int, str]:
        size = self._part.sizes[sample]
        start = self._catalog.read(self._part, sample, 0, min(size, npy.MAX_HEADER_BYTES))
        try:
            return npy.parse_header(start, size)
        except ValueError as error:
            raise DamagedDataError(
                f"{self._catalog.where(sample)}: part {self._part.name} is not a one-dimensional array of integers "
                f"({error}): save it with numpy.save"
            ) from error


def open_documents(
    catalog: Catalog, data: TextData | TokensData, say: Say, read_window: ReadWindow = ReadWindow()
) -> Documents:
    """Documents as the recipe reads them. DataError: a sample lacks the part, or it is not what the recipe says."""
    raises = data.on_error == "stop"
    if data.kind == "tokens":
        return ArrayDocuments(catalog, data.part, data.vocab, raises, say)
    tokenizer = open_tokenizer(data.tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return EncodedDocuments(catalog, data.part, tokenizer, read_window, raises, say)
    return ByteDocuments(catalog, data.part)
