"""Rows of Parquet files, read one batch of a row group at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from configs.errors import DataError
from data.arrays import Ints
from data.pack_inputs.text_rows import Row, RowReader, Values

_BATCH_ROWS = 256


class ParquetRowFile:
    """A Parquet file. The size of a row is the mean of its row group: to know it better is to read all of it."""

    ascending = True

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Reads the footer. DataError: it is not Parquet."""
        self.path = path
        with _opened(path) as file:
            self._types = {field.name: field.type for field in file.schema_arrow}
            self.columns = list(self._types)
            groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
            self._group_rows = np.array([group.num_rows for group in groups], np.int64)
            means = [_column_bytes(group, columns) // max(group.num_rows, 1) for group in groups]
        self.sizes: Ints = np.repeat(np.array(means, np.int64), self._group_rows)

    def embeds(self, column: str) -> bool:
        """The column holds bytes, or the {bytes, path} of Hugging Face's data sets."""
        return not _is_text(self._types[column])

    def reader(self, numbers: Ints, columns: Sequence[str]) -> RowReader:
        """Rows of these ascending numbers. A row group larger than a shard is decoded for each of its shards."""
        starts = np.concatenate(([0], np.cumsum(self._group_rows)))
        ends = np.searchsorted(numbers, starts[1:])
        by_group = np.split(numbers, ends[:-1])
        groups = [(group, int(starts[group]), rows) for group, rows in enumerate(by_group) if len(rows)]
        return ParquetRows(self.path, list(columns), groups)


@dataclass(frozen=True)
class ParquetRows:
    """Rows of row groups: (number of the group, its first row in the file, rows in the file)."""

    path: Path
    columns: list[str]
    groups: list[tuple[int, int, Ints]]

    def rows(self) -> Iterator[Row]:
        """In ascending order. DataError: a row group cannot be read."""
        with _opened(self.path) as file:
            for group, first, numbers in self.groups:
                yield from self._group(file, group, first, numbers)

    def _group(self, file: pq.ParquetFile, group: int, first: int, numbers: Ints) -> Iterator[Row]:
        last = int(numbers[-1])
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self.columns):
                wanted = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + len(batch))]
                columns = {name: _plain(batch.column(name)) for name in self.columns} if len(wanted) else {}
                for number in wanted.tolist():
                    yield Row(f"{self.path} row {number + 1}", _values(columns, number - first))
                first += len(batch)
                if first > last:
                    return
        except pa.ArrowException as error:
            raise DataError(f"{self.path}: row group {group} cannot be read ({error}): make the file again") from error


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({error}): correct the path or the name") from error


def _column_bytes(group: Any, columns: Sequence[str]) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def _plain(column: Any) -> Any:
    # Bytes, so that text which is not UTF-8 can be named rather than fail here.
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.large_binary()) if _is_text(column.type) else column


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _values(columns: dict[str, Any], row: int) -> Values:
    return {name: _value(column[row]) for name, column in columns.items()}


def _value(scalar: Any) -> Any:
    is_integers = isinstance(scalar, pa.ListScalar | pa.LargeListScalar) and pa.types.is_integer(scalar.type.value_type)
    if is_integers and scalar.is_valid and scalar.values.null_count == 0:
        return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()
