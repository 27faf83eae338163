"""Tar stream -> regular files: ustar, pax and GNU long names, every header checked. No I/O.

A Python loop only hops from header to header; checksums and names are worked out for thousands of headers at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.arrays import Bytes, Ints
from data.index import tar_header_fields
from data.index.tar_header_fields import HEADER_BYTES, OCTAL_DIGITS

HEADERS_AT_ONCE = 4096
_MAX_EXTENSION_BYTES = 1 << 20
_END_BYTES = 2 * HEADER_BYTES
_ZERO_BLOCK = bytes(HEADER_BYTES)
_SIZE_AND_KIND = Struct("11sB20xB").unpack_from  # from byte 124: 11 digits, what closes them; the type at byte 156
_NO_MEMBER, _EXTENDS = -1, -2  # in place of a size; the latter belongs to the header that follows
_PLAIN = ord("0")
_REGULAR, _FOLDER = (b"0", b"\0", b"7"), b"5"
_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_EXTENSIONS = (_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL)
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Members:
    """Regular files in order: contents are sizes[i] bytes from offsets[i]; starts[i] is where its headers start."""

    names: list[bytes]
    offsets: Ints
    sizes: Ints
    starts: Ints


class TarParser:
    """Reads one tar from its chunks, which may be of any size; `end` is where its end mark starts, once reached."""

    def __init__(self, name: str, shard_bytes: int) -> None:
        self.end: int | None = None
        self._name = name
        self._shard_bytes = shard_bytes
        self._seen = 0
        self._next = 0  # where the next header starts
        self._carried = b""  # of a header, or of its extension, that goes on in the next chunk
        self._intact = 0  # headers found intact so far
        self._problem: str | None = None
        self._named: dict[str, bytes] = {}  # of the next member
        self._defaults: dict[str, bytes] = {}
        self._rows: list[int] = []  # headers within the chunk
        self._headers: list[Bytes] = []
        self._places: list[Ints] = []
        self._sizes: list[int] = []  # of each header's contents
        self._paths: dict[int, bytes] = {}  # names that extensions give, by header

    def members(self, chunks: Iterable[bytes]) -> Iterator[Members]:
        """The regular files of the whole archive, thousands at a time.

        DataError: not a tar, damaged, truncated, or holding links or sparse files.
        """
        for chunk in chunks:
            self._read_chunk(self._carried + chunk if self._carried else chunk, self._seen - len(self._carried))
            self._seen += len(chunk)
            # Not between an extended header and the header whose name it gives.
            enough = len(self._sizes) >= HEADERS_AT_ONCE and self._sizes[-1] != _EXTENDS
            if enough or self._problem is not None:
                yield self._checked_members()
        if self.end is None or self._seen < self.end + _END_BYTES:
            self._problem = self._truncation()
        yield self._checked_members()

    def _read_chunk(self, chunk: bytes, start: int) -> None:
        """Note the headers in a chunk that starts at byte `start` of the tar."""
        at = self._next - start
        self._carried = b""
        if self.end is None:
            at = self._scan_headers(chunk, start, at)
        if self.end is not None:
            self._check_end(chunk[max(at, 0) :], start + max(at, 0))
        elif at < len(chunk):
            self._carried = chunk[at:]
        self._collect_headers(chunk, start)
        self._next = start + at

    def _scan_headers(self, chunk: bytes, start: int, at: int) -> int:
        """From header to header, as far as they are whole; gives where the next one starts within the chunk."""
        rows, sizes, named, defaults = self._rows, self._sizes, self._named, self._defaults
        last = len(chunk) - HEADER_BYTES
        while at <= last:
            digits, closing, kind = _SIZE_AND_KIND(chunk, at + 124)
            if kind == _PLAIN and not (closing or named or defaults or digits.translate(None, OCTAL_DIGITS)):
                size = int(digits, 8)
                sizes.append(size)
                rows.append(at)
            elif (found := self._read_unusual(chunk, start, at)) is None:
                break
            else:
                size = found
            at += HEADER_BYTES + (size + 511 & ~511)
        return at

    def _read_unusual(self, chunk: bytes, start: int, at: int) -> int | None:
        """The size of what follows a header of any other form; None at the end, at a problem, or when cut off."""
        header, kind = chunk[at : at + HEADER_BYTES], chunk[at + 156 : at + 157]
        if header == _ZERO_BLOCK:
            self.end = start + at
            return None
        if kind in _EXTENSIONS:
            return self._read_extension(kind, header, chunk, start, at)
        attributes = {**self._defaults, **self._named}
        if kind in _REGULAR:
            return self._read_regular(header, attributes, start, at)
        self._record_header(at, _NO_MEMBER)
        self._named.clear()
        if kind != _FOLDER:
            name = attributes.get("path") or tar_header_fields.names(_as_matrix(header))[0]
            self._problem = _refusal(_REFUSED.get(kind, f"an entry of unknown type {kind!r}"), _as_text(name))
            return None
        return 0  # a folder's size is a hint about the file system, not contents

    def _read_regular(self, header: bytes, attributes: dict[str, bytes], start: int, at: int) -> int | None:
        named = attributes.get("size")
        size = tar_header_fields.size(header) if named is None else tar_header_fields.decimal(named)
        if "path" in attributes:
            self._paths[len(self._sizes)] = attributes["path"]
        self._record_header(at, size)
        self._named.clear()
        return self._checked_size(size, start + at)

    def _read_extension(self, kind: bytes, header: bytes, chunk: bytes, start: int, at: int) -> int | None:
        size, contents = tar_header_fields.size(header), at + HEADER_BYTES
        if size > _MAX_EXTENSION_BYTES:
            self._problem = f"a {size}-byte extended header at byte {start + contents}: make the shard again"
        elif contents + size > len(chunk):
            return None
        self._record_header(at, _NO_MEMBER if kind == _PAX_GLOBAL else _EXTENDS)
        if self._problem or self._checked_size(size, start + at) is None:
            return None
        found = self._attributes(kind, chunk[contents : contents + size], start + contents)
        (self._defaults if kind == _PAX_GLOBAL else self._named).update(found)
        return size if self._problem is None else None

    def _attributes(self, kind: bytes, block: bytes, place: int) -> dict[str, bytes]:
        if kind == _GNU_LONG_LINK:
            return {}
        if kind == _GNU_LONG_NAME:
            return {"path": block.partition(b"\0")[0]}
        try:
            found = tar_header_fields.pax_records(block)
        except ValueError:
            self._problem = f"damaged pax header at byte {place}: make or copy the shard again"
            return {}
        if any(key.startswith("GNU.sparse") for key in found):
            self._problem = _refusal("a sparse file", f"the member whose header is at byte {place}")
        return {key: found[key] for key in ("path", "size") if key in found}

    def _checked_size(self, size: int, place: int) -> int | None:
        if size < 0:
            self._problem = f"damaged size in the tar header at byte {place}: copy the shard again"
        elif size > self._shard_bytes:
            self._problem = self._truncation()
        return size if self._problem is None else None

    def _record_header(self, at: int, size: int) -> None:
        self._rows.append(at)
        self._sizes.append(size)

    def _collect_headers(self, chunk: bytes, start: int) -> None:
        """Keep the headers of this chunk until there are enough to check at once."""
        if self._rows:
            rows = np.array(self._rows, np.int64)
            # A view of a header at every byte; of these only the real ones are copied.
            blocks = np.ndarray(len(chunk) - HEADER_BYTES + 1, f"V{HEADER_BYTES}", chunk, strides=1)
            self._headers.append(blocks[rows].view(np.uint8).reshape(-1, HEADER_BYTES))
            self._places.append(rows + start)
            self._rows.clear()

    def _check_end(self, tail: bytes, place: int) -> None:
        """After the first zero block there is a second one, and then nothing but zeros."""
        nonzero = np.frombuffer(tail, np.uint8)
        if self.end is None or not nonzero.any():
            return
        found = place + int(np.argmax(nonzero != 0))
        self._problem = self._truncation()
        if found >= self.end + _END_BYTES:
            self._problem = (
                f"data follows the end of the archive at byte {found}, as after `cat a.tar b.tar`: "
                "keep one archive per shard"
            )

    def _checked_members(self) -> Members:
        """What was gathered, once every header of it proved intact; a problem is reported only then.

        A damaged size leads anywhere, and what is found there is not what is wrong.
        """
        headers = np.concatenate([np.empty((0, HEADER_BYTES), np.uint8), *self._headers])
        places = np.concatenate([np.empty(0, np.int64), *self._places])
        self._refuse_damaged(headers, places)
        if self._problem is not None:
            raise DataError(f"{self._name}: {self._problem}")
        sizes = np.array(self._sizes, np.int64)
        rows = np.flatnonzero(sizes >= 0)
        members = Members(
            names=self._names(headers, rows),
            offsets=places[rows] + HEADER_BYTES,
            sizes=sizes[rows],
            starts=places[_first_rows(sizes != _EXTENDS)][rows],
        )
        for gathered in (self._headers, self._places, self._sizes, self._paths):
            gathered.clear()
        return members

    def _refuse_damaged(self, headers: Bytes, places: Ints) -> None:
        damaged = tar_header_fields.damaged(headers)
        first = int(np.argmax(damaged)) if damaged.any() else len(damaged)
        if first < len(damaged):
            found = f"damaged tar header at byte {places[first]}: make or copy the shard again"
            if self._intact + first == 0:
                hint = _compression_hint(headers[0].tobytes()) or "name a .tar shard"
                found = f"not a tar archive: {hint}"
            raise DataError(f"{self._name}: {found}")
        self._intact += len(damaged)

    def _names(self, headers: Bytes, rows: Ints) -> list[bytes]:
        names = tar_header_fields.names(headers)
        for row, path in self._paths.items():
            names[row] = path
        names = names if len(rows) == len(names) else [names[row] for row in rows]
        try:
            b"\0".join(names).decode()
        except UnicodeDecodeError as error:
            name = next(name for name in names if not _is_utf8(name))
            raise DataError(f"{self._name}: the member name {name!r} is not UTF-8: rename the file") from error
        return [_without_dot_slash(name) if name.startswith(b"./") else name for name in names]

    def _truncation(self) -> str:
        if self._shard_bytes == 0:
            return "the file is empty, not a tar archive: make or copy the shard again"
        if self._shard_bytes < HEADER_BYTES:
            why = _compression_hint(self._carried) or f"only {self._shard_bytes} bytes: make the shard again"
            return f"not a tar archive: {why}"
        return (
            f"truncated: the file ends at byte {self._shard_bytes}, before the end of its archive: "
            "make or copy the shard again"
        )


def _first_rows(ends: npt.NDArray[np.bool_]) -> Ints:
    """For each row the first one after the last end before it."""
    last_ends = np.maximum.accumulate(np.where(ends, np.arange(1, len(ends) + 1), 0))
    return np.concatenate([np.zeros(1, np.int64), last_ends])[:-1]


def _refusal(what: str, where: str) -> str:
    return f"{where} is {what}, but samples are plain files: make the shard without it"


def _without_dot_slash(name: bytes) -> bytes:
    while name.startswith(b"./"):
        name = name[2:]
    return name


def _as_matrix(header: bytes) -> Bytes:
    return np.frombuffer(header, np.uint8).reshape(1, HEADER_BYTES)


def _as_text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _compression_hint(start: bytes) -> str | None:
    """What to do about an archive that starts like this, if it is compressed."""
    known = start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return "it is compressed; decompress it" if known else None
