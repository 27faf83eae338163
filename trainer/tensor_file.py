"""The layout of a safetensors file (github.com/huggingface/safetensors), planned before any tensor is copied."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

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
