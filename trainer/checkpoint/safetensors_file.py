"""The layout of a safetensors file, planned before any tensor is copied, and its header read without torch.

The format: 8 bytes with the length of a JSON header, the header, the tensors' bytes end to end
(https://github.com/huggingface/safetensors, README).
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

__all__ = ["DTYPE_BYTES", "TensorInfo", "read_header", "write_tensors"]


DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER_BYTES = 100_000_000  # as the library's own limit
_IMAGE_ALIGNMENT = 64  # bytes, of the first tensor in a checkpoint's file
_EXPORT_ALIGNMENT = 8  # bytes: the format's own, and what exported files have always had


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor. `dtype` as safetensors calls it, such as F32."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor in the file. Raises KeyError for a dtype that is not in DTYPE_BYTES."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class TensorFilePlan:
    """`header` comes first; each tensor lies at its absolute byte offset; the file has `bytes`."""

    header: bytes
    offsets: dict[str, int]
    bytes: int


def plan_tensor_file(tensors: Mapping[str, TensorInfo]) -> TensorFilePlan:
    """The file of a checkpoint: tensors in the order given, but those of wide dtypes first. Pure.

    Sorted so, without gaps between them, every tensor is aligned to its own dtype.
    """
    return _plan(dict(sorted(tensors.items(), key=lambda item: -DTYPE_BYTES[item[1].dtype])), _IMAGE_ALIGNMENT, {})


def _plan(tensors: Mapping[str, TensorInfo], alignment: int, metadata: dict[str, str]) -> TensorFilePlan:
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    starts, position = {}, 0
    for name, info in tensors.items():
        span = [position, position + info.bytes]
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": span}
        starts[name] = position
        position += info.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % alignment)  # blanks at the end of the JSON are the format's only padding
    header = len(text).to_bytes(8, "little") + text
    return TensorFilePlan(header, {name: start + len(header) for name, start in starts.items()}, len(header) + position)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Dtype and shape by name. Raises ValueError for what is no safetensors file, OSError for what cannot be read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise ValueError("its first 8 bytes are not the length of a header")
        header = file.read(size)
    if not header.startswith(b"{"):
        raise ValueError("its header is not JSON")
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        found = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header is not one of safetensors ({error!r})") from error
    if (expected := 8 + size + end) != path.stat().st_size:
        raise ValueError(f"it has {path.stat().st_size} bytes, its header says {expected}")
    return found


def write_tensors(
    path: Path, tensors: Mapping[str, TensorInfo], contents: Iterable[memoryview], metadata: dict[str, str]
) -> None:
    """Write `contents`, one for each of `tensors` and in their order, as they come; on disk when this returns.

    Raises ValueError for a content of another size than its entry, FileExistsError, and OSError.
    """
    with path.open("xb") as file:
        file.write(_plan(tensors, _EXPORT_ALIGNMENT, metadata).header)
        for (name, info), content in zip(tensors.items(), contents, strict=True):
            if content.nbytes != info.bytes:
                raise ValueError(f"{name} has {content.nbytes} bytes, planned were {info.bytes}")
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
