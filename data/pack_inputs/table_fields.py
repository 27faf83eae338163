"""Columns of a row -> parts of a sample."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from configs.errors import DataError
from data.arrays import Array
from data.images.image_samples import LABEL_PART
from data.pack.pack_plan import LeftOut
from data.pack_inputs.file_inputs import image_part
from data.pack_inputs.text_part import TOKENS_PART, Encoding, npy_bytes, refuse_text, text_part, token_dtype
from data.pack_inputs.text_rows import Row

IMAGE = "image"  # stands for the part that the image's kind gives
Role = Literal["text", "image", "label", "tokens", "value", "file"]
_PART_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,15}")
_INTEGER = re.compile(r"[0-9]{1,18}")
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


class Field(NamedTuple):
    """A column that becomes a part; `is_path`: it names a file whose contents the part is."""

    part: str
    column: str
    role: Role
    is_path: bool = False


class ConvertedPart(NamedTuple):
    """A part, its contents, and how many tokens they are."""

    part: str
    contents: bytes
    tokens: int = 0


@dataclass(frozen=True)
class Conversion:
    """What the values of a row are turned into."""

    root: Path  # paths in the table are relative to it
    classes: dict[str, int] | None  # None: labels are numbers already
    encoding: Encoding | None
    vocab: int | None  # of a column of tokens
    check: bool  # that images can be decoded

    def convert(self, row: Row, field: Field) -> ConvertedPart | LeftOut:
        """One part of the row's sample. DataError names the row and the column that cannot be used."""
        value = column_value(row, field)
        if value is None:
            return LeftOut(row.where, f"{field.column} is empty")
        if field.role == "label":
            return ConvertedPart(LABEL_PART, b"%d" % self._label(row, field, value))
        if field.role == "tokens":
            return self._tokens(row, field, value)
        if field.role == "image":
            return self._image(row, field, value)
        contents = self._file(row, field, value) if field.is_path else _as_bytes(value)
        return self._text(row, field, contents) if field.role == "text" else ConvertedPart(field.part, contents)

    def path(self, row: Row, field: Field) -> Path:
        """The file that a column names."""
        value = column_value(row, field)
        text = value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise DataError(f"{row.where}: column {field.column} is {_shown(value)}, expected the path of a file")
        return self.root / text

    def _file(self, row: Row, field: Field, _value: object) -> bytes:
        return self.path(row, field).read_bytes()

    def _text(self, row: Row, field: Field, text: bytes) -> ConvertedPart | LeftOut:
        refused = refuse_text(row.where, text)
        return refused or ConvertedPart(*text_part(text, self.encoding))

    def _label(self, row: Row, field: Field, value: object) -> int:
        name = label_name(row, field, value)
        if self.classes is None:
            return int(name)
        if name not in self.classes:
            raise DataError(
                f"{row.where}: column {field.column} is {name!r}, which is not among the {len(self.classes)} classes: "
                "correct the label, or add the class to the file"
            )
        return self.classes[name]

    def _tokens(self, row: Row, field: Field, value: object) -> ConvertedPart | LeftOut:
        ids = np.asarray(value) if isinstance(value, list | np.ndarray) else np.empty((0, 0))
        assert self.vocab is not None
        if isinstance(value, list | np.ndarray) and len(value) == 0:
            return LeftOut(row.where, f"{field.column} is empty")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(f"{row.where}: column {field.column} is {_shown(value)}, expected a list of integers")
        contents = npy_bytes(narrow_ids(f"{row.where}: column {field.column}", ids, self.vocab))
        return ConvertedPart(TOKENS_PART, contents, len(ids))

    def _image(self, row: Row, field: Field, value: object) -> ConvertedPart | LeftOut:
        if field.is_path:
            path = self.path(row, field)
            contents, part = path.read_bytes(), image_part(path.name)
        else:
            contents, part = _embedded_image(row, field, value)
        if part is None:
            return LeftOut(row.where, f"{field.column} is not an image of a known kind")
        from data.pack_inputs.file_inputs import refuse_image

        refused = refuse_image(row.where, contents, part) if self.check else None
        return refused or ConvertedPart(part, contents)


def column_value(row: Row, field: Field) -> Any:
    """None for an empty text too, as CSV has nothing else. DataError: the row lacks the column."""
    if field.column not in row.values:
        raise DataError(
            f"{row.where}: no column {field.column}; it has {', '.join(row.values)}: correct the option or the row"
        )
    value = row.values[field.column]
    return None if isinstance(value, str | bytes) and not value else value


def label_name(row: Row, field: Field, value: object) -> str:
    """A label as text. DataError: it is neither text nor a number from 0."""
    name = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
    if not isinstance(value, str | bytes | int) or (isinstance(value, int) and value < 0):
        raise DataError(f"{row.where}: column {field.column} is {_shown(value)}, expected a class or a number from 0")
    return name


def is_number(name: str) -> bool:
    """The label needs no list of classes."""
    return _INTEGER.fullmatch(name) is not None


def narrow_ids(where: str, ids: Array, vocab: int) -> Array:
    """Token ids as they are kept. DataError: one is not below `vocab`."""
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"{where} holds token id {wrong}, but ids are 0 … {vocab - 1}: correct --vocab or the tokens")
    return ids.astype(token_dtype(vocab))


def part_fields(pairs: Sequence[str], role: Role, option: str) -> list[Field]:
    """`EXT=COLUMN` options as fields. DataError: not of that form."""
    fields = []
    for pair in pairs:
        part, equals, column = pair.partition("=")
        if not equals or not column or not _PART_NAME.fullmatch(part):
            raise DataError(
                f"{option} {pair}: expected EXT=COLUMN, such as json=meta; EXT has up to 16 of a-z 0-9 . _ -"
            )
        fields.append(Field(part, column, role, is_path=role == "file"))
    return fields


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    return json.dumps(plain, ensure_ascii=False, default=str).encode(errors="surrogatepass")


def _embedded_image(row: Row, field: Field, value: object) -> tuple[bytes, str | None]:
    contents = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(contents, bytes):
        raise DataError(f"{row.where}: column {field.column} is {_shown(value)}, expected the bytes of an image")
    if contents[:4] == b"RIFF" and contents[8:12] == b"WEBP":
        return contents, "webp"
    return contents, next((part for magic, part in _MAGIC if contents.startswith(magic)), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
