"""Arrays in one file that numpy.load reads too, mapped into memory rather than read.

A .npz whose members are stored as they are and start at multiples of 64 bytes. Its last 16 bytes (the zip's comment)
are the XXH3-64 of all before them, in hexadecimal: opening reads the file once, about 0.1 ms per MB in the page cache,
and a file that was cut or changed anywhere is not opened at all. Pages are shared by the processes of a machine.
"""

import io
import mmap
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import BinaryIO

import numpy as np

from data.arrays import Array
from data.shards.shard import checksum

_ALIGNMENT = 64
_SUM_BYTES = 16
_LOCAL_HEADER = Struct("<4s5H3L2H")  # ZIP file format specification, 4.3.7
_LOCAL_MAGIC = b"PK\x03\x04"
_PADDING_FIELD = Struct("<2H")
_PADDING_ID = 0xD935  # as Android's zipalign
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][biufSU]\d+)', 'fortran_order': False, 'shape': \((\d*(?:, ?\d+)*),?\), \} *\n"
)


def write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Plain arrays (numbers, strings, no objects) under ASCII names."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            before = whole.tell() + _LOCAL_HEADER.size + len(member.filename) + _PADDING_FIELD.size
            # An extra field of the header is as long as it takes to align the array, so that it is used where it lies.
            padding = -before % _ALIGNMENT
            member.extra = _PADDING_FIELD.pack(_PADDING_ID, padding) + bytes(padding)
            contents = io.BytesIO()
            np.lib.format.write_array(contents, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
            archive.writestr(member, contents.getbuffer())
        # The place of the checksum, which is known only when all bytes before it are.
        archive.comment = bytes(_SUM_BYTES)
    written = whole.getbuffer()
    file.write(written[:-_SUM_BYTES])
    file.write(_sum(written))


def map_npz(path: Path) -> dict[str, Array]:
    """Read-only arrays over a mapping of the file, which lives as long as one of them.

    ValueError: damaged, or not written by `write_npz`. OSError: no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        return parse_npz(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def parse_npz(contents: bytes | mmap.mmap) -> dict[str, Array]:
    """As `map_npz`, over contents that are in memory."""
    whole = memoryview(contents)
    if len(whole) < _SUM_BYTES or bytes(whole[-_SUM_BYTES:]) != _sum(whole):
        raise ValueError("damaged, or of another kind")
    arrays: dict[str, Array] = {}
    place = 0
    while whole[place : place + len(_LOCAL_MAGIC)] == _LOCAL_MAGIC:
        fields = _LOCAL_HEADER.unpack_from(whole, place)
        name_bytes, extra_bytes = fields[9:]
        start = place + _LOCAL_HEADER.size
        name = bytes(whole[start : start + name_bytes]).decode()
        place = start + name_bytes + extra_bytes
        arrays[name.removesuffix(".npy")], place = _array(whole, place)
    return arrays


def _array(whole: memoryview, start: int) -> tuple[Array, int]:
    """The array whose .npy form starts there, and where it ends. Its own header has its size, zip's ends at 4 GiB."""
    if whole[start : start + len(_NPY_MAGIC)] != _NPY_MAGIC:
        raise ValueError("not an array")
    text = start + len(_NPY_MAGIC) + 2
    end = text + int.from_bytes(whole[text - 2 : text], "little")
    match = _NPY_HEADER.fullmatch(whole[text:end])
    if match is None:
        raise ValueError("an array of another kind")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(n) for n in match[2].split(b",") if n)
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(whole, dtype, count, end) if dtype.itemsize * count else np.empty(count, dtype)
    return array.reshape(shape), end + dtype.itemsize * count


def _sum(whole: memoryview) -> bytes:
    return b"%016x" % checksum(whole[:-_SUM_BYTES])
