"""Files, tables and arrays -> train and val shards with a manifest: what `stoker data pack` calls.

Every function makes OUT/train-*.tar, OUT/val-*.tar and OUT/manifest.json as `packing_run.pack_shards` says, in the same
bytes whatever `options` is, and raises its DataErrors.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DataError
from data.pack.packing_run import PackOptions, PackSummary, pack_shards
from data.pack.partial_folder import partial_folder
from data.pack.shard_writer import DEFAULT_LIMITS, ShardLimits
from data.pack_inputs.file_inputs import image_inputs, text_inputs
from data.pack_inputs.list_files import list_files
from data.pack_inputs.table_inputs import Columns, table_inputs
from data.pack_inputs.text_part import Encoding, open_encoding
from data.pack_inputs.token_arrays import ArraySplit, array_inputs

__all__ = ["pack_arrays", "pack_images", "pack_table", "pack_text", "read_classes"]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DEFAULT_OPTIONS = PackOptions()


def pack_text(
    folder: Path,
    pattern: str,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    options: PackOptions = _DEFAULT_OPTIONS,
    tokenizer: str | None = None,
) -> PackSummary:
    """Files of `folder` that match a glob, as part txt, or with a tokenizer (`bytes`, or a tokenizer.json) as part npy.

    Files that are empty or not UTF-8 are left out and counted. DataError: nothing matches.
    """
    with _planning(folder, out):
        listing = list_files(folder, pattern, _outputs(out), options.say)
        inputs = text_inputs(listing, {"glob": pattern}, _encoding(tokenizer))
    return pack_shards(inputs, out, val_fraction, limits, options)


def pack_images(
    folder: Path,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    options: PackOptions = _DEFAULT_OPTIONS,
    classes: list[str] | None = None,
    check: bool = False,
) -> PackSummary:
    """`folder`/CLASS/*.jpg (jpeg, png, webp), bytes kept, with part cls; out/classes.json lists the classes by number.

    Files of other kinds are left out and counted; with `check`, images that cannot be decoded too.
    DataError: there are no images, or a class is not among `classes`.
    """
    with _planning(folder, out):
        inputs = image_inputs(list_files(folder, "**/*", _outputs(out), options.say), classes, check)
    return pack_shards(inputs, out, val_fraction, limits, options)


def pack_table(
    path: Path,
    columns: Columns,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    options: PackOptions = _DEFAULT_OPTIONS,
    tokenizer: str | None = None,
) -> PackSummary:
    """Rows of a CSV, TSV, JSONL or Parquet file, or of all in a folder. DataError: see table_inputs.py."""
    with _planning(path, out):
        inputs = table_inputs(path, columns, _encoding(tokenizer), _outputs(out), options.say)
    return pack_shards(inputs, out, val_fraction, limits, options)


def pack_arrays(
    path: Path,
    split: ArraySplit,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    options: PackOptions = _DEFAULT_OPTIONS,
    vocab: int | None = None,
) -> PackSummary:
    """Token ids of .npy files as part npy. DataError: see token_arrays.py."""
    with _planning(path, out):
        inputs = array_inputs(path, split, vocab, _outputs(out), options.say)
    return pack_shards(inputs, out, val_fraction, limits, options)


def read_classes(path: Path) -> list[str]:
    """The classes of another packing, its classes.json. DataError: it is not a list of names, each once."""
    try:
        classes = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as classes ({error}): name a classes.json") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{path}: not a list of names: name a classes.json")
    if len(set(classes)) < len(classes):
        raise DataError(f"{path}: names a class twice: keep each once")
    return classes


def _encoding(tokenizer: str | None) -> Encoding | None:
    return None if tokenizer is None else open_encoding(tokenizer)


def _outputs(out: Path) -> list[Path]:
    return [out, partial_folder(out)]


@contextmanager
def _planning(path: Path, out: Path) -> Iterator[None]:
    """DataError: a place is not local, or the path cannot be read."""
    for place in (path, out):
        if _URL.match(str(place)):
            raise DataError(f"{place}: only local folders can be packed: pack there, then copy the shards")
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error}): correct it") from error
