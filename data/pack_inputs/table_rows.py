"""Tables: the rows of one file, or of all files of one kind in a folder, numbered from 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.arrays import Ints, Say
from data.draws import uniforms
from data.pack.pack_plan import Draws, digest_of, unique_keys
from data.pack_inputs.list_files import list_files
from data.pack_inputs.text_rows import DELIMITERS, JSON_SUFFIXES, Row, RowFile, RowReader, TextRowFile, text_columns

PARQUET = ".parquet"
SUFFIXES = (*DELIMITERS, *JSON_SUFFIXES, PARQUET)
_LONGEST_NAME = 60


@dataclass(frozen=True)
class RowsOfFiles:
    """Rows of several files, each with the key of its sample."""

    parts_of_files: list[tuple[str, Ints, RowReader]]  # the start of the keys, numbers within the file, and the rows

    def rows(self) -> Iterator[tuple[str, Row]]:
        """(key of the sample, row), in the order chosen."""
        for name, numbers, reader in self.parts_of_files:
            for number, row in zip(numbers.tolist(), reader.rows(), strict=True):
                yield f"{name}-{number:08d}", row


class Table:
    """The rows of several files, one file after the other."""

    def __init__(self, folder: Path, names: Sequence[str], files: Sequence[RowFile]) -> None:
        self.folder = folder
        self.names = list(names)
        self.files = list(files)
        self._starts: Ints = np.cumsum([0, *(len(file.sizes) for file in files)], dtype=np.int64)
        self._keys = unique_keys(self.names, _LONGEST_NAME)

    @property
    def ascending(self) -> bool:
        """Rows can only be read in order."""
        return self.files[0].ascending

    @property
    def columns(self) -> list[str]:
        """Of the first file."""
        return self.files[0].columns

    @property
    def sizes(self) -> Ints:
        """Bytes of each row as it lies in its file."""
        return np.concatenate([file.sizes for file in self.files])

    def draws(self, purpose: str) -> Draws:
        """A number in [0, 1) per row, from its file's name and its number: rows added at the end change no other."""
        named = zip(self.names, self.files, strict=True)
        return np.concatenate([uniforms(len(file.sizes), ("pack", purpose, name)) for name, file in named])

    def digest(self) -> str:
        """Of names, rows and their sizes."""
        named = zip(self.names, self.files, strict=True)
        return digest_of(part for name, file in named for part in (name, len(file.sizes), file.sizes.tobytes().hex()))

    def modified(self) -> str:
        """Of the times of modification."""
        return digest_of(file.path.stat().st_mtime_ns for file in self.files)

    def rows(self, numbers: Ints, columns: Sequence[str]) -> RowsOfFiles:
        """These rows in this order, which ascends where `ascending`."""
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        runs = np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(owners)) + 1) if len(numbers) else []
        return RowsOfFiles([self._part_of_file(int(owners[run[0]]), numbers[run], columns) for run in runs])

    def _part_of_file(self, owner: int, numbers: Ints, columns: Sequence[str]) -> tuple[str, Ints, RowReader]:
        within = numbers - self._starts[owner]
        return self._keys[owner], within, self.files[owner].reader(within, columns)


def find_tables(source: Path, without: Sequence[Path], say: Say) -> tuple[Path, list[str]]:
    """(folder, names): `source` itself, or the tables below it.

    DataError: there is none, it is of an unknown kind, or a folder mixes kinds.
    """
    if source.is_file():
        _refuse_kind(source)
        return source.parent, [source.name]
    listing = list_files(source, "**/*", without, say)
    names = [name for name in listing.names if Path(name).suffix in SUFFIXES]
    for link in listing.left_out:
        if Path(link.name).suffix in SUFFIXES:
            raise DataError(f"{source / link.name}: {link.reason}: remove it")
    kinds = sorted({Path(name).suffix for name in names})
    if len(kinds) != 1:
        found = f"tables of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no table"
        raise DataError(f"{source}: holds {found}, expected files of one of {', '.join(SUFFIXES)}: name one file")
    return source, names


def open_table(folder: Path, names: Sequence[str], columns: Sequence[str], say: Say) -> Table:
    """Find the rows, of which `columns` will be read.

    DataError: a file is damaged, lacks a column, or there are no rows.
    """
    files = []
    for name in names:
        say(f"finding the rows of {folder / name}")
        files.append(_open_file(folder / name, columns))
        lacking = [column for column in columns if files[-1].columns and column not in files[-1].columns]
        if lacking:
            raise DataError(
                f"{folder / name}: no column {lacking[0]}; it has {', '.join(files[-1].columns)}: correct the option"
            )
    if not any(len(file.sizes) for file in files):
        raise DataError(f"{folder / names[0]}: no rows: name a table that has some")
    return Table(folder, names, files)


def first_columns(path: Path) -> list[str]:
    """The columns of a table; of JSONL, the keys of its first row."""
    return text_columns(path) if path.suffix != PARQUET else _open_file(path, []).columns


def _open_file(path: Path, columns: Sequence[str]) -> RowFile:
    if path.suffix != PARQUET:
        return TextRowFile(path)
    from data.pack_inputs.parquet_rows import ParquetRowFile  # pyarrow takes a while to import

    return ParquetRowFile(path, columns)


def _refuse_kind(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        compressed = " (decompress it first)" if path.suffix in (".gz", ".zst", ".bz2", ".xz") else ""
        raise DataError(f"{path}: a table of unknown kind{compressed}: expected one of {', '.join(SUFFIXES)}")
