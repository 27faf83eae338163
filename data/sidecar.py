"""Arrays derived from a shard, kept beside it (or in the user's cache) and dropped when the shard changes."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np

from data.atomic import published
from data.shards import SIDECAR_MARK
from data.types import Array, Say


def load(shard: Path, name: str, stamp: tuple[int, ...]) -> dict[str, Array] | None:
    """The arrays saved under `name`, or None when there are none, they are stale (another stamp) or damaged."""
    for path in _places(shard, name):
        if path.is_file() and (arrays := _read(path)) is not None and _same(arrays.pop("stamp", None), stamp):
            return arrays
    return None


def save(shard: Path, name: str, stamp: tuple[int, ...], arrays: dict[str, Array], say: Say) -> None:
    """Atomic, so many processes may save at once; says so when neither place is writable."""
    for path in _places(shard, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with published(path) as file:
                np.savez(file, allow_pickle=False, stamp=np.array(stamp, np.int64), **arrays)
            return
        except OSError as error:
            failure = error
    say(f"cannot keep the {name} of {shard} ({failure}): it will be built again by each process")


def _places(shard: Path, name: str) -> list[Path]:
    absolute = shard.absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stoker" / "index"
    digest = hashlib.sha256(str(absolute).encode()).hexdigest()
    suffix = f"{SIDECAR_MARK}{name}.npz"
    return [absolute.with_name(absolute.name + suffix), cache / (digest + suffix)]


def _read(path: Path) -> dict[str, Array] | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    # A damaged sidecar costs a rebuild, never a run.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _same(found: Array | None, stamp: tuple[int, ...]) -> bool:
    return found is not None and found.tolist() == list(stamp)
