"""Tables -> inputs of packing: a sample per row, its parts from columns."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.arrays import Ints, Say
from data.pack.pack_plan import Inputs, Json, LeftOut, PackJob, Sample, digest_of
from data.pack.shard_writer import TAR_BLOCK_BYTES, tar_bytes
from data.pack_inputs.file_inputs import number_classes
from data.pack_inputs.list_files import report_count
from data.pack_inputs.table_fields import IMAGE, Conversion, Field, column_value, is_number, label_name, part_fields
from data.pack_inputs.table_rows import RowsOfFiles, Table, find_tables, first_columns, open_table
from data.pack_inputs.text_part import Encoding
from data.pack_inputs.text_rows import Row

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """Which columns become which parts. With none named: `text`, or `path` (or `image`) and `label`."""

    text: str | None = None
    image: str | None = None
    label: str | None = None
    tokens: str | None = None
    parts: Sequence[str] = ()  # EXT=COLUMN: the value
    files: Sequence[str] = ()  # EXT=COLUMN: the contents of the file named
    root: Path | None = None  # of paths; the table's folder by default
    classes: list[str] | None = None  # what labels are numbered by; by default the sorted labels
    vocab: int | None = None  # of the column of tokens
    check: bool = False  # leave out images that cannot be decoded

    def fields(self) -> list[Field]:
        """In the order of the parts of a sample."""
        fields = [Field("txt", self.text, "text")] if self.text else []
        fields += [Field(IMAGE, self.image, "image")] if self.image else []
        fields += [Field("npy", self.tokens, "tokens")] if self.tokens else []
        fields += part_fields(self.files, "file", "--file") + part_fields(self.parts, "value", "--part")
        return fields + ([Field("cls", self.label, "label")] if self.label else [])


@dataclass(frozen=True)
class TableJob:
    """Rows that each are a sample."""

    rows: RowsOfFiles
    fields: list[Field]
    conversion: Conversion

    def samples(self) -> Iterator[Sample | LeftOut]:
        """A sample per row. DataError names the row and the column that cannot be used."""
        for key, row in self.rows.rows():
            yield self._sample(key, row)

    def _sample(self, key: str, row: Row) -> Sample | LeftOut:
        parts, tokens = {}, 0
        for field in self.fields:
            found = self.conversion.convert(row, field)
            if isinstance(found, LeftOut):
                return found
            parts[found.part] = found.contents
            tokens += found.tokens
        return Sample(key, parts, tokens)


def table_inputs(
    source: Path, columns: Columns, encoding: Encoding | None, without: Sequence[Path], say: Say
) -> Inputs:
    """A sample per row. Rows keep their order, unless parts are files of their own: then they are in random order.

    Rows with an empty value, or text that is not UTF-8, are left out. DataError names what is wrong.
    """
    folder, names = find_tables(source, without, say)
    fields = _fields(columns, folder / names[0])
    _refuse_mismatch(fields, columns, encoding)
    wanted = sorted({field.column for field in fields})
    table = open_table(folder, names, wanted, say)
    fields = [_with_path(table, field) for field in fields]
    conversion = Conversion(columns.root or folder, None, encoding, columns.vocab, columns.check)
    scan = _scan(table, fields, conversion, columns.classes is None, say)
    classes = columns.classes or scan.classes
    conversion = Conversion(
        conversion.root, number_classes(classes) if classes else None, encoding, columns.vocab, columns.check
    )

    def job(numbers: Ints) -> PackJob:
        return TableJob(table.rows(numbers, wanted), fields, conversion)

    keeps_order = table.ascending or not any(field.is_path for field in fields)
    sizes = _archived_bytes(table, fields, encoding, scan.file_bytes)
    return Inputs(
        kind="table",
        options=_options(columns, fields),
        sizes=sizes,
        order=np.arange(len(sizes)) if keeps_order else np.argsort(table.draws("order"), kind="stable"),
        draws=table.draws("val"),
        digest=digest_of((table.digest(), sizes.tobytes().hex())),  # the files that rows name have sizes too
        modified=digest_of((table.modified(), *scan.modified)),
        job=job,
        facts=_facts(columns, encoding, classes),
    )


def _fields(columns: Columns, path: Path) -> list[Field]:
    fields = columns.fields()
    if fields:
        return fields
    names = first_columns(path)
    if "text" in names:
        return [Field("txt", "text", "text")]
    image = next((name for name in ("path", "image") if name in names), None)
    if image and "label" in names:
        return [Field(IMAGE, image, "image"), Field("cls", "label", "label")]
    if names in ([], [""]):
        raise DataError(f"{path}: the file is empty: name a table that has rows")
    raise DataError(f"{path} has columns {', '.join(names)}: choose with --text, --image, --tokens or --part")


def _refuse_mismatch(fields: Sequence[Field], columns: Columns, encoding: Encoding | None) -> None:
    roles = {field.role for field in fields}
    parts = ["npy" if field.part == "txt" and encoding else field.part for field in fields]
    if twice := sorted({part for part in parts if parts.count(part) > 1}):
        raise DataError(f"part {twice[0]} would be made of two columns: choose one, or another EXT")
    if encoding is not None and "text" not in roles:
        raise DataError("--tokenizer is given, but no column of text: name it with --text")
    if "tokens" in roles and columns.vocab is None:
        raise DataError("--tokens needs --vocab: how many token ids there are")
    for given, role, option in (
        (columns.classes is not None, "label", "--classes without --label"),
        (columns.vocab is not None, "tokens", "--vocab without --tokens"),
        (columns.check, "image", "--check without --image"),
    ):
        if given and role not in roles:
            raise DataError(f"{option} has no meaning: leave it out, or name the column")


def _with_path(table: Table, field: Field) -> Field:
    if field.role != "image":
        return field
    return field._replace(is_path=not table.files[0].embeds(field.column))


@dataclass(frozen=True)
class _Scan:
    """What is known only once the rows are read: what their files take in an archive, and the classes (None: numbers).

    `modified` changes when those files may: where they lie, and their times of modification.
    """

    file_bytes: Ints | None
    classes: list[str] | None
    modified: tuple[str, ...] = ()


def _scan(table: Table, fields: Sequence[Field], conversion: Conversion, name_classes: bool, say: Say) -> _Scan:
    paths = [field for field in fields if field.is_path]
    labels = [field for field in fields if field.role == "label" and name_classes]
    if not paths and not labels:
        return _Scan(None, None)
    sizes, names = np.zeros(len(table.sizes), np.int64), set[str]()
    modified_ns = np.zeros((len(table.sizes), len(paths)), np.int64)
    rows = table.rows(np.arange(len(sizes)), [field.column for field in (*paths, *labels)])
    for number, (_, row) in enumerate(report_count(rows.rows(), say, f"reading the rows of {table.folder}")):
        files = [_file_status(row, field, conversion) for field in paths]
        sizes[number] = tar_bytes(file.st_size if file else 0 for file in files)
        modified_ns[number] = [file.st_mtime_ns if file else 0 for file in files]
        for field in labels:
            if (value := column_value(row, field)) is not None:
                names.add(label_name(row, field, value))
    numbered = all(map(is_number, names))
    modified = (str(conversion.root.resolve()), modified_ns.tobytes().hex()) if paths else ()
    return _Scan(sizes if paths else None, None if numbered else sorted(names), modified)


def _file_status(row: Row, field: Field, conversion: Conversion) -> os.stat_result | None:
    """None: the row names no file."""
    if column_value(row, field) is None:
        return None
    path = conversion.path(row, field)
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise DataError(
            f"{row.where}: {path}, named in column {field.column}, does not exist: correct the row, or name the "
            "folder of the files with --root"
        ) from error


def _archived_bytes(table: Table, fields: Sequence[Field], encoding: Encoding | None, file_bytes: Ints | None) -> Ints:
    """What each row takes in an archive: its files, and headers and contents of the other parts, roughly."""
    values = sum(not field.is_path for field in fields)
    sizes = table.sizes * (1 if encoding is None else encoding.bytes_per_byte)
    archived = 2 * values * TAR_BLOCK_BYTES + (sizes if values > _labels(fields) else 0)
    return np.asarray(archived + (0 if file_bytes is None else file_bytes) + np.zeros_like(table.sizes))


def _labels(fields: Sequence[Field]) -> int:
    return sum(field.role == "label" for field in fields)


def _options(columns: Columns, fields: Sequence[Field]) -> Json:
    chosen = [f"{field.part}={field.column} ({field.role})" for field in fields]
    return {"columns": chosen, "check": columns.check}


def _facts(columns: Columns, encoding: Encoding | None, classes: list[str] | None) -> Json:
    facts: Json = dict(encoding.facts) if encoding else {}
    if columns.vocab is not None:
        facts["vocab"] = columns.vocab
    return {**facts, "classes": classes} if classes else facts
