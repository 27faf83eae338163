"""Files that appear whole or not at all."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_file", "sync_folder", "to_json", "write_durably"]


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; on success it is synced and renamed to `path`, on failure it is removed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step. Leaves nothing behind when it fails."""
    with atomic_file(path) as file:
        file.write(content)


def to_json(value: Any) -> bytes:
    """Indented JSON that keeps every bit of a float."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
