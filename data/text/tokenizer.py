"""Text -> token ids and back: bytes, or a Hugging Face tokenizer file."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from configs.errors import DataError, RecipeError
from configs.recipe import Recipe
from data.arrays import Ints

__all__ = ["Tokenizer", "open_tokenizer", "vocab_size"]


BYTE_VALUES = 256
END_OF_DOCUMENT_NAMES = ("<|endoftext|>", "</s>", "<eos>", "[SEP]", "[EOS]")


class Tokenizer(Protocol):
    """Ids are 0 … vocab_size-1; `identity` changes when the ids of a text may change."""

    @property
    def identity(self) -> str:
        """`bytes`, or the sha256 of the tokenizer's file."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, end of document included."""

    @property
    def end_of_document(self) -> int:
        """The id that follows each document."""

    def encode(self, text: bytes) -> Ints:
        """Ids of UTF-8 text, without end of document."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""


class ByteTokenizer:
    """A token per byte; 256 ends a document."""

    identity = "bytes"
    vocab_size = BYTE_VALUES + 1
    end_of_document = BYTE_VALUES

    def encode(self, text: bytes) -> Ints:
        """Ids of the bytes, without end of document."""
        return np.frombuffer(text, np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text; end of document is left out, and bytes that are not UTF-8 show as U+FFFD."""
        return bytes(i for i in ids if i < BYTE_VALUES).decode(errors="replace")


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"data.tokenizer {path}: cannot be read ({error.strerror}, working directory {Path.cwd()}): "
                "name a tokenizer.json, or `bytes`"
            ) from error
        self.identity = hashlib.sha256(contents).hexdigest()
        self._tokenizer = _parse(path, contents)

    @cached_property
    def vocab_size(self) -> int:
        """The highest id, added tokens included, plus one."""
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    @cached_property
    def end_of_document(self) -> int:
        """The id of the first of END_OF_DOCUMENT_NAMES that the file has."""
        for name in END_OF_DOCUMENT_NAMES:
            if (found := self._tokenizer.token_to_id(name)) is not None:
                return int(found)
        raise DataError(
            f"data.tokenizer {self.path}: no end-of-document token: add one of {', '.join(END_OF_DOCUMENT_NAMES)}"
        )

    def encode(self, text: bytes) -> Ints:
        """Ids without special tokens. UnicodeDecodeError when the text is not UTF-8."""
        return np.array(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids, np.int64)

    def encode_many(self, texts: Sequence[str]) -> list[Ints]:
        """Ids of each text, without special tokens, worked out on all cores."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _parse(path: Path, contents: bytes) -> "tokenizers.Tokenizer":
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(contents)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"data.tokenizer {path}: not a tokenizers file ({error}): name a tokenizer.json, or `bytes`"
        ) from error
    # Settings of the file for other uses: a document is encoded as a whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_tokenizer(name: str) -> ByteTokenizer | HuggingFaceTokenizer:
    """`bytes`, or the path of a tokenizer.json. DataError when the file is missing or not one."""
    return ByteTokenizer() if name == "bytes" else HuggingFaceTokenizer(Path(name))


def vocab_size(recipe: Recipe) -> int:
    """Number of token ids in the recipe's data. RecipeError for images, which have none."""
    if recipe.data.kind == "tokens":
        return recipe.data.vocab
    if recipe.data.kind == "text":
        return open_tokenizer(recipe.data.tokenizer).vocab_size
    raise RecipeError(f"data.kind is {recipe.data.kind}, which has no vocabulary: use text or tokens")
