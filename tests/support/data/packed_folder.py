"""What a packed folder holds, as other programs see it."""

import hashlib
from pathlib import Path

import webdataset


def tars(folder: Path) -> list[Path]:
    """The shards, sorted by name."""
    return sorted(folder.glob("*.tar"))


def read_split(folder: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Parts of each sample by key, read by webdataset."""
    found = {}
    for shard in sorted(folder.glob(f"{split}-*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
            assert sample["__key__"] not in found
            found[sample["__key__"]] = {name: value for name, value in sample.items() if not name.startswith("__")}
    return found


def digests(folder: Path, pattern: str = "[!.]*[!z]") -> dict[str, str]:
    """sha256 of what follows from the input alone: shards, manifest and classes, not the indexes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(pattern)}
