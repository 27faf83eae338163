"""The layout of a safetensors file (github.com/huggingface/safetensors), planned before any tensor is copied."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

__all__ = ["DTYPE_BYTES", "TensorInfo", "read_header", "write_tensors"]


DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_HEADER_BYTES = 100_000_000  # as the library's own limit
_ALIGNMENT = 8

_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorSpec:
    """One tensor to be stored. `dtype` as safetensors calls it, such as F32."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class TensorFilePlan:
    """`header` comes first; each tensor lies at its absolute byte offset; the file has `bytes`."""

    header: bytes
    offsets: dict[str, int]
    bytes: int


def plan_tensor_file(specs: Sequence[TensorSpec], item_bytes: dict[str, int]) -> TensorFilePlan:
    """Tensors in the order given, but those of wide dtypes first: without gaps all are aligned then. Pure."""
    entries, starts, position = {}, {}, 0
    for spec in sorted(specs, key=lambda spec: -item_bytes[spec.dtype]):
        offsets = [position, position + spec.bytes]
        entries[spec.key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        starts[spec.key] = position
        position += spec.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return TensorFilePlan(header, {key: start + len(header) for key, start in starts.items()}, len(header) + position)


@dataclass(frozen=True)
class TensorInfo:
    """What a header tells of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


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
    path: Path, plan: dict[str, TensorInfo], contents: Iterable[memoryview], metadata: dict[str, str]
) -> None:
    """Write `contents`, one for each tensor of `plan` and in its order, as they come; on disk when this returns."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, info in plan.items():
        entries[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.bytes],
        }
        position += info.bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for (name, info), content in zip(plan.items(), contents, strict=True):
            if content.nbytes != info.bytes:
                raise ValueError(f"{name} has {content.nbytes} bytes, planned were {info.bytes}")
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
