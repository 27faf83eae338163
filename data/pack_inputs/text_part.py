"""Text -> the part of a sample: as it is, or as tokens."""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from configs.errors import DataError
from data.arrays import Array
from data.pack.pack_plan import Json, LeftOut
from data.text.tokenizer import Tokenizer, open_tokenizer

TEXT_PART = "txt"
TOKENS_PART = "npy"
_NARROW_VOCAB = 1 << 16
_MOST_VOCAB = 1 << 32


@dataclass(frozen=True)
class Encoding:
    """How tokens are made of text: the file may not change under the processes that read it."""

    tokenizer: str  # `bytes`, or the path of a tokenizer.json
    identity: str
    vocab: int

    @property
    def facts(self) -> Json:
        """For the manifest: `bytes` or the sha256 of the tokenizer's file, and the number of token ids."""
        return {"tokenizer": self.identity, "vocab": self.vocab}

    def tokens(self, text: bytes) -> Array:
        """ids_T of the text, then the end of document."""
        tokenizer = _open(self.tokenizer, self.identity)
        ids = np.append(tokenizer.encode(text), tokenizer.end_of_document)
        return ids.astype(token_dtype(self.vocab))

    @property
    def bytes_per_byte(self) -> int:
        """Of tokens, for a byte of text: exact for bytes, no less than what a learnt vocabulary takes as a rule."""
        return token_dtype(self.vocab).itemsize if self.tokenizer == "bytes" else 1


def open_encoding(tokenizer: str) -> Encoding:
    """DataError: the file is missing, is not a tokenizer, or has no end of document."""
    opened = open_tokenizer(tokenizer)
    _ = opened.end_of_document
    return Encoding(tokenizer, opened.identity, opened.vocab_size)


@lru_cache(maxsize=1)
def _open(name: str, identity: str) -> Tokenizer:
    tokenizer = open_tokenizer(name)
    if tokenizer.identity != identity:
        raise DataError(f"tokenizer {name}: changed while packing: remove what was packed and run again")
    return tokenizer


def token_dtype(vocab: int) -> np.dtype[np.unsignedinteger]:
    """Little-endian uint16 where every id fits, else uint32. DataError: some fit in neither."""
    if vocab > _MOST_VOCAB:
        raise DataError(f"token ids up to {vocab - 1}: expected ids below 2³²; correct the tokens or --vocab")
    return np.dtype("<u2" if vocab <= _NARROW_VOCAB else "<u4")


def npy_bytes(array: Array) -> bytes:
    """The array as a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def refuse_text(name: str, text: bytes) -> LeftOut | None:
    """Why the text is left out, if it is."""
    if not text:
        return LeftOut(name, "empty")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return LeftOut(name, f"not UTF-8 at byte {error.start}")
    return None


def text_part(text: bytes, encoding: Encoding | None) -> tuple[str, bytes, int]:
    """(part, its contents, number of tokens) of UTF-8 text."""
    if encoding is None:
        return TEXT_PART, text, 0
    ids = encoding.tokens(text)
    return TOKENS_PART, npy_bytes(ids), len(ids)
