"""Fields of many tar headers at once, and of one. Pure."""

import numpy as np

from data.arrays import Array, Bytes, Ints

__all__ = ["HEADER_BYTES"]


HEADER_BYTES = 512
OCTAL_DIGITS = b"01234567"
_MAX_DIGITS = 18  # an int64 holds them
_NAME, _SIZE, _SUM, _MAGIC, _PREFIX = slice(0, 100), slice(124, 136), slice(148, 156), slice(257, 263), slice(345, 500)
_USTAR = np.frombuffer(b"ustar\0", np.uint8)  # GNU's is "ustar  ", and it keeps times where ustar keeps the prefix
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)


def damaged(headers_NH: Bytes) -> Array:
    """True for each header whose checksum is not the sum of its bytes (its own field counted as spaces)."""
    fields = headers_NH[:, _SUM]
    sums = _byte_sums(headers_NH) - fields.sum(axis=1, dtype=np.int64) + fields.shape[1] * ord(" ")
    wrong: Array = sums != _octals(fields)
    return wrong


def names(headers_NH: Bytes) -> list[bytes]:
    """The name of each header, with its ustar prefix."""
    found: list[bytes] = np.ascontiguousarray(headers_NH[:, _NAME]).view("S100").ravel().tolist()
    found = [name.partition(b"\0")[0] if b"\0" in name else name for name in found]
    prefixed = (headers_NH[:, _PREFIX.start] != 0) & (headers_NH[:, _MAGIC] == _USTAR).all(axis=1)
    for row in np.flatnonzero(prefixed):
        prefix = headers_NH[row, _PREFIX].tobytes().partition(b"\0")[0]
        found[row] = prefix + b"/" + found[row]
    return found


def size(header: bytes) -> int:
    """Of the contents; -1 when the field is damaged."""
    field = header[_SIZE]
    if field[0] == 0x80:  # GNU's base-256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return -1 if digits.translate(None, OCTAL_DIGITS) else int(digits or b"0", 8)


def decimal(text: bytes) -> int:
    """A size as pax writes it; -1 when it is no such number."""
    return int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else -1


def _byte_sums(headers_NH: Bytes) -> Ints:
    """Four sums in the 16-bit lanes of a word: 64 words of two bytes each stay below 2**16."""
    words = headers_NH.view(np.uint64)
    lanes = ((words & _EVEN_BYTES) + ((words >> np.uint64(8)) & _EVEN_BYTES)).sum(axis=1)
    sums: Ints = lanes.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
    return sums


def _octals(fields_NW: Bytes) -> Ints:
    """Octal numbers between spaces or NULs, an empty field 0; -1 where there is anything else."""
    digits = fields_NW - np.uint8(ord("0"))
    is_digit = digits < 8
    is_padding = (fields_NW == 0) | (fields_NW == ord(" "))
    # Digits on both sides of a space are no number.
    runs = is_digit[:, 0] + (is_digit[:, 1:] & ~is_digit[:, :-1]).sum(axis=1)
    values = np.zeros(len(fields_NW), np.int64)
    for column, present in zip(digits.T, is_digit.T, strict=True):
        values = np.where(present, values * 8 + column, values)
    return np.where((is_digit | is_padding).all(axis=1) & (runs <= 1), values, -1)


def pax_records(block: bytes) -> dict[str, bytes]:
    """`length key=value\\n` records (POSIX.1-2001, pax interchange format). ValueError when damaged."""
    found: dict[str, bytes] = {}
    start = 0
    while start < len(block):
        digits = block[start : start + 12].partition(b" ")[0]
        end = start + (int(digits) if digits.isdigit() else 0)
        key, equals, value = block[start + len(digits) + 1 : max(start, end - 1)].partition(b"=")
        if not equals or block[end - 1 : end] != b"\n":
            raise ValueError("not a pax record")
        found[key.decode()] = value
        start = end
    return found
