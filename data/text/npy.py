"""One-dimensional integer .npy files, read by range."""

import io
import math

import numpy as np

from data.arrays import Array

__all__ = ["parse_header"]


MAX_HEADER_BYTES = 256
DTYPES = ("|u1", "|i1", *(f"{order}{kind}{width}" for order in "<>" for kind in "ui" for width in (2, 4, 8)))


def parse_header(start: bytes, size: int) -> tuple[int, str]:
    """(length, one of DTYPES) from the first MAX_HEADER_BYTES and the size. ValueError: it is not one."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"npy version {version}")
    if len(shape) != 1:
        raise ValueError(f"{len(shape)} dimensions")
    if dtype.kind not in "iu":
        raise ValueError(f"dtype {dtype}")
    if size != file.tell() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size} bytes, where its header promises {file.tell() + math.prod(shape) * dtype.itemsize}")
    return int(shape[0]), dtype.str


def byte_range(size: int, length: int, dtype: str, first: int, last: int) -> tuple[int, int]:
    """Where elements first … last-1 lie in a file of `size` bytes."""
    width = np.dtype(dtype).itemsize
    start = size - length * width
    return start + first * width, start + last * width


def parse_elements(contents: bytes, dtype: str) -> Array:
    """Elements from their bytes."""
    return np.frombuffer(contents, np.dtype(dtype))
