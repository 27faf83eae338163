"""OUT/manifest.json: what a folder of packed shards holds, and from what it was made."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.atomic import atomic_file
from data.pack.pack_plan import Json, LeftOut, LeftOuts

__all__ = ["MANIFEST", "read_json"]


VERSION = 1
MANIFEST = "manifest.json"
CREATED_BY = "stoker data pack"


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard; `name` is where it was written, which differs from the published name after an empty one."""

    name: str
    split: str
    bytes: int
    samples: int
    tokens: int
    sha256: str
    parts: list[str]
    left_out: LeftOuts

    def to_json(self) -> Json:
        """Plain data for the record's file in OUT.partial."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Json) -> "ShardRecord":
        """The record that `to_json` gave `fields` for."""
        left_out = fields["left_out"]
        first = [LeftOut(*entry) for entry in left_out["first"]]
        return cls(**{**fields, "left_out": LeftOuts(left_out["count"], first)})


def make_manifest(plan: Json, planned_left_out: LeftOuts, shards: list[tuple[str, ShardRecord]]) -> Json:
    """The manifest of shards under their published names. It follows from the inputs: no times, no hosts, no paths."""
    left_out = LeftOuts()
    left_out.merge(planned_left_out)
    for _, record in shards:
        left_out.merge(record.left_out)
    kept = [(name, record) for name, record in shards if record.samples]
    return {
        **plan,
        "created_by": CREATED_BY,
        "parts": sorted({part for _, record in kept for part in record.parts}),
        "train": _totals([record for _, record in kept if record.split == "train"]),
        "val": _totals([record for _, record in kept if record.split == "val"]),
        "skipped": {"count": left_out.count, "first": [entry._asdict() for entry in left_out.first]},
        "shards": [_entry(name, record) for name, record in kept],
    }


def _totals(records: list[ShardRecord]) -> Json:
    totals = {
        "samples": sum(record.samples for record in records),
        "bytes": sum(record.bytes for record in records),
        "shards": len(records),
    }
    tokens = sum(record.tokens for record in records)
    return {**totals, "tokens": tokens} if tokens else totals


def _entry(name: str, record: ShardRecord) -> Json:
    entry = {"name": name, "split": record.split, "bytes": record.bytes, "samples": record.samples}
    return {**entry, **({"tokens": record.tokens} if record.tokens else {}), "sha256": record.sha256}


def write_json(path: Path, value: Any) -> None:
    """Atomic; the same value gives the same bytes."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The value, or None where there is no such file. ValueError: it is not JSON."""
    return json.loads(path.read_bytes()) if path.is_file() else None
