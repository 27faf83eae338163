"""Folders -> the regular files in them, with sizes and times."""

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from configs.errors import DataError
from data.arrays import PROGRESS_S, Ints, Say
from data.pack.pack_plan import LeftOut, digest_of

Item = TypeVar("Item")


@dataclass(frozen=True)
class Listing:
    """Files below `folder`, sorted by their relative paths, and the links among them that lead to no file."""

    folder: Path
    names: list[str]
    sizes: Ints
    modified_ns: Ints
    left_out: list[LeftOut]

    def digest(self) -> str:
        """sha256 over names and sizes, so that a packing goes on only with the same files."""
        return digest_of(part for pair in zip(self.names, self.sizes.tolist(), strict=True) for part in pair)

    def modified(self) -> str:
        """sha256 over the times of modification."""
        return digest_of(self.modified_ns.tolist())

    def only(self, wanted: Sequence[bool]) -> "Listing":
        """The files for which `wanted` is true; `left_out` stays."""
        chosen = np.array(wanted, np.bool_)
        names = [name for name, is_wanted in zip(self.names, wanted, strict=True) if is_wanted]
        return Listing(self.folder, names, self.sizes[chosen], self.modified_ns[chosen], self.left_out)


def list_files(folder: Path, pattern: str, without: Sequence[Path], say: Say) -> Listing:
    """Regular files that match a glob, none of them below the folders `without`; linked folders are not entered.

    DataError: no such folder, a pattern that is not relative, or nothing matches.
    """
    if not pattern or Path(pattern).is_absolute():
        raise DataError(f"glob {pattern!r} must be relative to the folder {folder}, such as **/*.txt")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: correct the path")
    matches = dict(_matches(folder, report_count(folder.glob(pattern), say, f"listing {folder}"), without))
    left_out = [LeftOut(name, match) for name, match in sorted(matches.items()) if isinstance(match, str)]
    found = {name: match for name, match in matches.items() if not isinstance(match, str)}
    if not found:
        raise DataError(f"{folder}: no file matches {pattern}: correct the folder or the pattern")
    names = sorted(found)
    statuses = [found[name] for name in names]
    sizes = np.array([status.st_size for status in statuses], np.int64)
    return Listing(folder, names, sizes, np.array([status.st_mtime_ns for status in statuses], np.int64), left_out)


def _matches(
    folder: Path, paths: Iterable[Path], without: Sequence[Path]
) -> Iterator[tuple[str, os.stat_result | str]]:
    """Each file, or why a link is none."""
    start = 0 if folder == Path() else len(str(folder)) + (not str(folder).endswith("/"))
    excluded = tuple(f"{os.path.relpath(path, folder)}/" for path in without)
    for path in paths:
        name = str(path)[start:]
        if name.startswith(excluded):
            continue
        try:
            status = path.stat()
        except OSError as error:
            if not path.is_symlink():
                raise
            yield name, f"a link that leads nowhere ({error.strerror})"
            continue
        if stat.S_ISDIR(status.st_mode) and path.is_symlink():
            yield name, "a link to a folder, which is not entered"
        if stat.S_ISREG(status.st_mode):
            yield name, status


def report_count(items: Iterable[Item], say: Say, what: str) -> Iterator[Item]:
    """The items; a line now and then says how many have passed."""
    said_at = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - said_at > PROGRESS_S:
            say(f"{what}: {number} so far")
            said_at = time.monotonic()
        yield item


def read_listed(folder: Path, name: str, size: int) -> bytes:
    """The whole file. DataError: it is not as long as when it was listed."""
    contents = (folder / name).read_bytes()
    if len(contents) != size:
        raise DataError(f"{folder / name}: was {size} bytes and is {len(contents)} now: run again")
    return contents
