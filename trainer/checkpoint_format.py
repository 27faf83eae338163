"""The checkpoint on disk: logical fragments in safetensors files, everything else in manifest.json, written last.

Every trainable parameter is stored as flat fp32 fragments with their place in the parameter, whatever the ZeRO stage
and the number of workers that wrote them, so any other stage and number can read just the ranges it needs.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, DamagedCheckpointError
from trainer.durable import to_json

FORMAT = 1
MANIFEST = "manifest.json"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class StoredFile:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredFragment:
    """Elements [start, start + count) of the flattened `parameter` are the tensor `key` of `file`."""

    parameter: str
    kind: str
    start: int
    count: int
    file: str
    key: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint. Valid only when every file matches its size and sha256."""

    step: int
    samples: int
    attempt: int
    workers: int
    engine: str
    recipe_sha256: str
    data_sha256: str
    versions: dict[str, str]
    parameters: dict[str, list[int]]
    files: list[StoredFile]
    fragments: list[StoredFragment]
    buffers: dict[str, str] = field(default_factory=dict)  # name -> file
    scalars: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def encode(self) -> bytes:
        """JSON with a checksum of itself, so that a flipped bit in the manifest is noticed too."""
        body = asdict(self)
        return to_json({"manifest": body, "sha256": _checksum(body)})


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises DamagedCheckpointError naming the file, CheckpointError when it is of another format or unreadable."""
    path = folder / MANIFEST
    content = _read(path)
    try:
        document = json.loads(content)
        body = document["manifest"]
        if content != to_json(document) or document["sha256"] != _checksum(body):
            raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match")
        if body["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {body['format']}, this Stoker reads {FORMAT}: use the one that made it"
            )
        files = [StoredFile(**entry) for entry in body["files"]]
        fragments = [StoredFragment(**entry) for entry in body["fragments"]]
        return Manifest(**{**body, "files": files, "fragments": fragments})
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from error


def _read(path: Path) -> bytes:
    """A file that is not there is damage; one that cannot be read may be whole, and is left alone."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def verify_file(folder: Path, stored: StoredFile) -> None:
    """Raises DamagedCheckpointError naming the file when it is missing, of another size, or any bit of it differs."""
    path = folder / stored.name
    try:
        size = path.stat().st_size
        if size != stored.bytes:
            raise DamagedCheckpointError(f"{path} has {size} bytes, its manifest says {stored.bytes}")
        if file_sha256(path) != stored.sha256:
            raise DamagedCheckpointError(f"{path} is damaged: its sha256 differs from the manifest's")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_coverage(manifest: Manifest) -> None:
    """Raises CheckpointError unless the fragments of every state cover its parameter exactly once."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {("master", name): [] for name in manifest.parameters}
    for fragment in manifest.fragments:
        spans.setdefault((fragment.kind, fragment.parameter), []).append((fragment.start, fragment.count))
    for (kind, name), found in spans.items():
        position = 0
        for start, count in sorted(found):
            if start != position:
                raise CheckpointError(f"the {kind} fragments of {name} overlap or gap at {min(start, position)}")
            position += count
        total = _product(manifest.parameters[name])
        if position != total:
            raise CheckpointError(f"the {kind} fragments of {name} hold {position} of {total} elements")


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
