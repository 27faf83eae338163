"""The checkpoint's manifest: logical fragments in safetensors files, everything else here, written last.

Every trainable parameter is stored as flat fp32 fragments with their place in the parameter, whatever the ZeRO stage
and the number of workers that wrote them, so any other stage and number can read just the ranges it needs.
docs/checkpoints.md is the specification.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.errors import CheckpointError, DamagedCheckpointError, DataError
from data.atomic import to_json

__all__ = ["Manifest", "check_same_data"]


FORMAT = 3  # raised whenever an older Stoker would misread what a newer one writes
MANIFEST = "manifest.json"
MASTER = "master"  # the kind of the fp32 weights; every other kind is the optimizer's name of an element-wise state
FRAGMENT_DTYPE = "F32"
FRAGMENT_ITEM_BYTES = 4


@dataclass(frozen=True)
class StoredFile:
    """`blocks`: XXH3-128 of each BLOCK_BYTES of the file (block_files.py), in hexadecimal, end to end."""

    name: str
    bytes: int
    sha256: str
    blocks: str


@dataclass(frozen=True)
class StoredFragment:
    """Elements [start, start + count) of the flattened `parameter` lie in `file` from byte `offset` on."""

    parameter: str
    kind: str
    start: int
    count: int
    file: str
    offset: int
    dtype: str = FRAGMENT_DTYPE

    @property
    def key(self) -> str:
        """Its name in the safetensors file."""
        return f"{self.kind}/{self.parameter}/{self.start}"


@dataclass(frozen=True)
class StoredBuffer:
    """A buffer or frozen parameter, whole, in `file` from byte `offset` on; `dtype` as safetensors calls it."""

    dtype: str
    shape: list[int]
    file: str
    offset: int


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint. Valid only when every file matches its size and checksums."""

    step: int
    samples: int
    targets: int  # predicted so far: tokens or images
    attempt: int
    workers: int
    engine: str
    zero_stage: int
    recipe: dict[str, Any]  # the keys that decide the result, dotted
    recipe_sha256: str  # of these
    data_sha256: str
    versions: dict[str, str]
    parameters: dict[str, list[int]]
    schedule: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # of a validation at this very step
    scalars: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)  # steps left out, and losses to compare the next ones with
    files: list[StoredFile] = field(default_factory=list)
    fragments: list[StoredFragment] = field(default_factory=list)
    buffers: dict[str, StoredBuffer] = field(default_factory=dict)
    format: int = FORMAT

    def encode(self) -> bytes:
        """JSON with a checksum of itself, so that a flipped bit in the manifest is noticed too."""
        body = asdict(self)
        return to_json({"manifest": body, "sha256": _checksum(body)})

    @property
    def total_bytes(self) -> int:
        """Of all ranks' files, without the manifest."""
        return sum(stored.bytes for stored in self.files)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


def decode_manifest(content: bytes, where: str) -> Manifest:
    """Raises DamagedCheckpointError when a bit differs from what was written, CheckpointError for another format."""
    try:
        document = json.loads(content)
        body = document["manifest"]
        # The very bytes, not only their meaning: a flipped bit may leave JSON of equal content.
        if content != to_json(document) or document["sha256"] != _checksum(body):
            raise DamagedCheckpointError(f"{where} is damaged: its checksum does not match")
        if body["format"] != FORMAT:
            raise CheckpointError(
                f"{where} has format {body['format']}, this Stoker reads {FORMAT}: use the one that made it"
            )
        files = [StoredFile(**entry) for entry in body["files"]]
        fragments = [StoredFragment(**entry) for entry in body["fragments"]]
        buffers = {name: StoredBuffer(**entry) for name, entry in body["buffers"].items()}
        return Manifest(**{**body, "files": files, "fragments": fragments, "buffers": buffers})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{where} is damaged: {error}") from error


def check_coverage(manifest: Manifest) -> None:
    """Raises CheckpointError unless the fragments of every state cover its parameter exactly once, within the files."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {(MASTER, name): [] for name in manifest.parameters}
    for fragment in manifest.fragments:
        spans.setdefault((fragment.kind, fragment.parameter), []).append((fragment.start, fragment.count))
    for (kind, name), found in spans.items():
        position = 0  # sorted, so that each must begin where the one before ended: neither a gap nor an overlap
        for start, count in sorted(found):
            if start != position:
                raise CheckpointError(f"the {kind} fragments of {name} overlap or gap at {min(start, position)}")
            position += count
        total = math.prod(manifest.parameters[name])
        if position != total:
            raise CheckpointError(f"the {kind} fragments of {name} hold {position} of {total} elements")
    file_bytes = {stored.name: stored.bytes for stored in manifest.files}
    for fragment in manifest.fragments:
        if fragment.offset + fragment.count * FRAGMENT_ITEM_BYTES > file_bytes.get(fragment.file, 0):
            raise CheckpointError(f"{fragment.key} lies beyond the end of {fragment.file}")


def check_same_data(manifest: Manifest, data_sha256: str, what: str) -> None:
    """Raises DataError when the shards with the fingerprint `data_sha256` are not those that `what` was trained on."""
    if manifest.data_sha256 != data_sha256:
        raise DataError(
            f"{what} was trained on other shards (fingerprint {manifest.data_sha256[:12]}, now {data_sha256[:12]}): "
            "restore them, or start a new run with another run.name"
        )
