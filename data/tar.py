"""Tar headers -> regular files: ustar, pax and GNU long names, checked, without reading the contents."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError

BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_MAX_EXTENSION_BYTES = 1 << 20
_FOLDER = b"5"
_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: its contents are `size` bytes from `offset`."""

    name: str
    offset: int
    size: int


class TarReader:
    """Walks the headers of one tar; `headers_crc32` covers the headers walked so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers_crc32 = 0
        self.members_seen = 0
        self._descriptor = os.open(path, os.O_RDONLY)
        self.shard_bytes = os.fstat(self._descriptor).st_size
        self.mtime_ns = os.fstat(self._descriptor).st_mtime_ns

    def __enter__(self) -> "TarReader":
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._descriptor)

    def members(self) -> Iterator[Member]:
        """Regular files in order. DataError: not a tar, damaged, truncated, or holding links or sparse files."""
        offset = 0
        named: dict[str, str] = {}
        defaults: dict[str, str] = {}
        while (header := self._header(offset)) is not None:
            kind, contents = header[156:157], offset + BLOCK_BYTES
            attributes = {**defaults, **named}
            extends = kind in (_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL)
            size = self._size(header, offset, {} if extends else attributes)
            offset = self._next(contents, size)
            if extends:
                found = self._extension(kind, contents, size)
                (defaults if kind == _PAX_GLOBAL else named).update(found)
                continue
            named = {}
            if member := self._member(header, kind, attributes, contents, size):
                yield member

    def _header(self, offset: int) -> bytes | None:
        header = os.pread(self._descriptor, BLOCK_BYTES, offset)
        if len(header) < BLOCK_BYTES:
            raise self._truncated()
        if header == _ZERO_BLOCK:
            self._check_end(offset)
            return None
        self._check_sum(header, offset)
        self.members_seen += 1
        self.headers_crc32 = zlib.crc32(header, self.headers_crc32)
        return header

    def _check_sum(self, header: bytes, offset: int) -> None:
        found = _octal(header[148:156])
        if found == sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return
        if self.members_seen:
            raise DataError(f"{self.path}: damaged tar header at byte {offset}: make or copy the shard again")
        hint = "it is compressed; decompress it" if _is_compressed(header) else "name a .tar shard"
        raise DataError(f"{self.path}: not a tar archive: {hint}")

    def _check_end(self, offset: int) -> None:
        if os.pread(self._descriptor, BLOCK_BYTES, offset + BLOCK_BYTES) != _ZERO_BLOCK:
            raise self._truncated()
        offset += 2 * BLOCK_BYTES
        while block := os.pread(self._descriptor, 1 << 20, offset):
            if block.count(0) != len(block):
                raise DataError(
                    f"{self.path}: data follows the end of the archive at byte {offset}, as after `cat a.tar b.tar`: "
                    "keep one archive per shard"
                )
            offset += len(block)

    def _size(self, header: bytes, offset: int, attributes: dict[str, str]) -> int:
        if header[156:157] == _FOLDER:
            return 0  # a hint about the file system, not contents
        size = _octal_or_base_256(header[124:136])
        if (named := attributes.get("size")) is not None:
            size = int(named) if named.isdecimal() else -1
        if size < 0:
            raise DataError(f"{self.path}: damaged size in the tar header at byte {offset}: copy the shard again")
        return size

    def _next(self, contents: int, size: int) -> int:
        if contents + size > self.shard_bytes:
            raise self._truncated()
        return contents + -(-size // BLOCK_BYTES) * BLOCK_BYTES

    def _extension(self, kind: bytes, contents: int, size: int) -> dict[str, str]:
        if size > _MAX_EXTENSION_BYTES:
            raise DataError(f"{self.path}: a {size}-byte extended header at byte {contents}: make the shard again")
        block = os.pread(self._descriptor, size, contents)
        self.headers_crc32 = zlib.crc32(block, self.headers_crc32)
        if kind == _GNU_LONG_LINK:
            return {}
        if kind == _GNU_LONG_NAME:
            return {"path": self._text(block.split(b"\0", 1)[0])}
        return self._pax(block, contents)

    def _pax(self, block: bytes, contents: int) -> dict[str, str]:
        """`length key=value\\n` records (POSIX.1-2001, pax interchange format)."""
        found: dict[str, str] = {}
        start = 0
        while start < len(block):
            digits = block[start : start + 12].split(b" ", 1)[0]
            length = int(digits) if digits.isdigit() else 0
            key, equals, value = block[start + len(digits) + 1 : start + length - 1].partition(b"=")
            if not equals or start + length > len(block):
                raise DataError(f"{self.path}: damaged pax header at byte {contents}: make or copy the shard again")
            if key.startswith(b"GNU.sparse"):
                raise self._refused("a sparse file", f"at byte {contents}")
            if key in (b"path", b"size"):
                found[key.decode()] = self._text(value)
            start += length
        return found

    def _member(
        self, header: bytes, kind: bytes, attributes: dict[str, str], contents: int, size: int
    ) -> Member | None:
        name = attributes.get("path") or self._header_name(header)
        if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
            return None
        if kind not in (b"0", b"\0", b"7"):
            raise self._refused(_REFUSED.get(kind, f"an entry of unknown type {kind!r}"), name)
        while name.startswith("./"):
            name = name[2:]
        return Member(name, contents, size)

    def _header_name(self, header: bytes) -> str:
        name = header[:100].split(b"\0", 1)[0]
        prefix = header[345:500].split(b"\0", 1)[0]
        # GNU's magic is "ustar  ", and it keeps times where ustar keeps the prefix.
        return self._text(prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)

    def _text(self, name: bytes) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: the member name {name!r} is not UTF-8: rename the file") from error

    def _refused(self, what: str, where: str) -> DataError:
        return DataError(f"{self.path}: {where} is {what}, but samples are plain files: make the shard without it")

    def _truncated(self) -> DataError:
        if self.shard_bytes == 0:
            return DataError(f"{self.path}: the file is empty, not a tar archive: make or copy the shard again")
        if self.members_seen == 0 and self.shard_bytes < BLOCK_BYTES:
            return DataError(f"{self.path}: not a tar archive, only {self.shard_bytes} bytes: make the shard again")
        return DataError(
            f"{self.path}: truncated: the file ends at byte {self.shard_bytes}, before the end of its archive: "
            "make or copy the shard again"
        )


def _is_compressed(start: bytes) -> bool:
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _octal_or_base_256(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's base-256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else -1
