"""Rows of CSV, TSV and JSONL files, found once, then read by position."""

import csv
import io
import json
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from configs.errors import DataError
from data.arrays import Ints

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson")

Values = dict[str, Any]


class Row(NamedTuple):
    """One row: `where` starts every message about it."""

    where: str
    values: Values


class RowReader(Protocol):
    """Chosen rows: plain data, for another process."""

    def rows(self) -> Iterator[Row]:
        """In the order chosen. DataError: a row is not what its file promises."""


class RowFile(Protocol):
    """Rows 0 … len(sizes)-1 of one file; `sizes` in bytes, an estimate of the values read."""

    path: Path
    columns: list[str]
    sizes: Ints
    ascending: bool  # rows can only be read in the order of the file

    def embeds(self, column: str) -> bool:
        """The column holds files, not their paths."""

    def reader(self, numbers: Ints, columns: Sequence[str]) -> RowReader:
        """Rows of these numbers, of which these columns are needed."""


class TextRowFile:
    """A CSV, TSV or JSONL file. Rows are counted from 1 in messages, without header and blank lines."""

    ascending = False

    def __init__(self, path: Path) -> None:
        """Finds every row. DataError: ragged rows, or it is not UTF-8 text of this kind."""
        self.path = path
        bounds = array("q")
        with path.open("rb") as file:
            if path.suffix in DELIMITERS:
                self.columns, spans = _csv_spans(path, file)
            else:
                self.columns, spans = text_columns(path), _json_spans(file)
            for span in spans:
                bounds.extend(span)
        self._bounds: Ints = np.frombuffer(bounds, np.int64).reshape(-1, 2)
        self.sizes: Ints = self._bounds[:, 1] - self._bounds[:, 0]

    def embeds(self, column: str) -> bool:
        """Never: text has no place for bytes."""
        return False

    def reader(self, numbers: Ints, columns: Sequence[str]) -> RowReader:
        """Rows of these numbers; other columns than those named may be there too."""
        return TextRows(self.path, self.columns, numbers, self._bounds[numbers])


@dataclass(frozen=True)
class TextRows:
    """Rows that lie at these bounds (first byte, end) of a file."""

    path: Path
    columns: list[str]
    numbers: Ints
    bounds: Ints

    def rows(self) -> Iterator[Row]:
        """In the order chosen. DataError: bytes at these bounds are no row of this kind."""
        parse: Callable[[bytes], Values] = _parse_json
        if self.path.suffix in DELIMITERS:
            parse = self._parse_csv
        with self.path.open("rb") as file:
            for number, (start, end) in zip(self.numbers.tolist(), self.bounds.tolist(), strict=True):
                where = f"{self.path} row {number + 1}"
                file.seek(start)
                try:
                    values = parse(file.read(end - start))
                except (ValueError, csv.Error) as error:
                    raise DataError(f"{where} (byte {start}): {error}: correct the row") from error
                yield Row(where, values)

    def _parse_csv(self, line: bytes) -> Values:
        fields = next(_csv_reader(self.path, io.StringIO(line.decode(), newline="")))
        return dict(zip(self.columns, fields, strict=True))


def _parse_json(line: bytes) -> Values:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object with columns was expected, found {type(values).__name__}")
    return values


def text_columns(path: Path) -> list[str]:
    """The header of a CSV or TSV file; the keys of the first row of a JSONL file. DataError: it has none."""
    with path.open("rb") as file:
        if path.suffix in DELIMITERS:
            return _csv_spans(path, file)[0]
        for start, end in _json_spans(file):
            file.seek(start)
            try:
                return list(_parse_json(file.read(end - start)))
            except ValueError as error:
                raise DataError(f"{path} row 1: {error}: expected one JSON object per line") from error
    return []


def _json_spans(file: BinaryIO) -> Iterator[tuple[int, int]]:
    end = 0
    for line in file:
        start, end = end, end + len(line)
        if not line.isspace():
            yield start, end


def _csv_spans(path: Path, file: BinaryIO) -> tuple[list[str], Iterator[tuple[int, int]]]:
    """The header, and where each row lies. csv pulls lines as it needs them, so their bytes are those of the row."""
    lines = _CountedLines(path, file)
    reader = _csv_reader(path, lines)
    columns = _next_fields(path, reader) or []
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: the header names a column twice ({', '.join(columns)}): rename one")
    return columns, _spans_of_rows(path, columns, reader, lines)


def _spans_of_rows(
    path: Path, columns: list[str], reader: "Iterator[list[str]]", lines: "_CountedLines"
) -> Iterator[tuple[int, int]]:
    number, start = 0, lines.bytes
    while (fields := _next_fields(path, reader)) is not None:
        if fields:
            number += 1
            if len(fields) != len(columns):
                raise DataError(
                    f"{path} row {number} (byte {start}) has {len(fields)} fields, but the header names "
                    f"{len(columns)} ({', '.join(columns)}): correct the row"
                )
            yield start, lines.bytes
        start = lines.bytes


def _next_fields(path: Path, reader: "Iterator[list[str]]") -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}: not what its name says ({error}): correct the file") from error


class _CountedLines:
    """Lines as text; `bytes` of them have been read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self.bytes = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # a byte order mark
        file.seek(self.bytes)
        self._lines = iter(file)

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.bytes += len(line)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}: not UTF-8 before byte {self.bytes}: convert the file") from error


def _csv_reader(path: Path, lines: "Iterator[str] | io.StringIO") -> "Iterator[list[str]]":
    csv.field_size_limit(sys.maxsize)  # the default would refuse texts over 128 KiB
    return csv.reader(lines, delimiter=DELIMITERS[path.suffix], strict=True)
