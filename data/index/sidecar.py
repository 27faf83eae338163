"""Arrays derived from a shard, kept beside it (or in the user's cache) and dropped when the shard changes."""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.arrays import Array, Say
from data.atomic import atomic_file
from data.index.npz_map import map_npz, write_npz
from data.index.shard_patterns import SIDECAR_MARK
from data.shards.shard import Shard

__all__ = ["load_or_build", "publish", "share_in", "suffix"]


# A builder that takes longer, or was stopped, is not waited for: the others then build too.
BUILDER_WAIT_S = 20.0
_POLL_S = 0.05
# Of this process: the folder that all hosts of a run see, and the shards far away that it has looked for.
_shared_folders: list[Path] = []
_remote_digests: set[str] = set()


def share_in(folder: Path) -> None:
    """From now on, what is derived from shards that are far away is looked for in `folder` too, and kept there."""
    _shared_folders[:] = [folder]


def publish() -> None:
    """What the cache of this host has of such shards goes to `share_in`: no other host reads them for it.

    Raises OSError when the folder cannot be written.
    """
    for folder in _shared_folders:
        for path in (
            path for digest in _remote_digests for path in _cache_folder().glob(f"{digest}{SIDECAR_MARK}*.npz")
        ):
            target = folder / path.name
            # A shard that changed since was indexed anew.
            if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(target) as file:
                    file.write(path.read_bytes())


def load(shard: Shard, name: str, stamp: str) -> dict[str, Array] | None:
    """The arrays saved under `name`, or None when there are none, they are stale (another stamp) or damaged."""
    for arrays in load_intact(shard, name):
        if arrays.pop("stamp").tolist() == stamp:
            return arrays
    return None


def load_intact(shard: Shard, name: str) -> Iterator[dict[str, Array]]:
    """All intact arrays under `name`, of any stamp (which is among them)."""
    for path in _places(shard, name):
        try:
            arrays = map_npz(path)
        except (OSError, ValueError):  # none there; or damaged, which costs a rebuild, never a run
            continue
        if "stamp" in arrays:
            yield arrays


def save(shard: Shard, name: str, stamp: str, arrays: dict[str, Array], say: Say) -> None:
    """Atomic, so many processes may save at once; says so when neither place is writable."""
    failure: OSError | None = None
    for path in _places(shard, name):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                write_npz(file, {"stamp": np.array(stamp), **arrays})
        except OSError as error:
            failure = error
        else:
            if shard.folder is not None:  # else in every place: the next one is for other hosts
                return
    if failure is not None:
        say(f"cannot keep the {name} of {shard.name} ({failure}): it will be built again by each process")


def load_or_build(
    shard: Shard,
    name: str,
    stamp: str,
    build: Callable[[], dict[str, Array]],
    say: Say,
    is_usable: Callable[[dict[str, Array]], bool] = lambda _: True,
) -> dict[str, Array]:
    """The arrays kept under `name`, if they are usable, or those that `build` gives, which are then kept."""
    kept = load(shard, name, stamp)
    if kept is None or not is_usable(kept):
        with build_lock(shard, name):
            kept = load(shard, name, stamp)  # another process may have built them meanwhile
            if kept is None or not is_usable(kept):
                kept = build()
                save(shard, name, stamp, kept, say)
    return kept


@contextmanager
def build_lock(shard: Shard, name: str) -> Iterator[None]:
    """One process of this machine at a time builds `name`; look again whether it is there once inside.

    A builder that is killed frees the others at once; one that is stopped, after BUILDER_WAIT_S.
    """
    path = _cache_folder() / f"{_digest(shard)}{SIDECAR_MARK}{name}.lock"
    lock = _wait_for_lock(path)
    try:
        yield
    finally:
        if lock is not None:
            # Before it is unlocked: whoever waits for this file finds that its name is gone, and opens another.
            path.unlink(missing_ok=True)
            os.close(lock)


def suffix(name: str) -> str:
    """What follows a shard's name in the name of the file beside it."""
    return f"{SIDECAR_MARK}{name}.npz"


def _places(shard: Shard, name: str) -> list[Path]:
    cached = _cache_folder() / f"{_digest(shard)}{suffix(name)}"
    if shard.folder is None:
        _remote_digests.add(_digest(shard))
        return [cached, *(folder / cached.name for folder in _shared_folders)]
    return [shard.folder / f"{Path(shard.identity).name}{suffix(name)}", cached]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stoker" / "index"


def _digest(shard: Shard) -> str:
    return hashlib.sha256(shard.identity.encode()).hexdigest()


def _wait_for_lock(path: Path) -> int | None:
    """An open, locked file; None when it cannot be had, be it for lack of a writable folder or of patience."""
    deadline = time.monotonic() + BUILDER_WAIT_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _try_lock(path)) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    except OSError:  # a read-only folder, or a file system without locks
        return None
    return descriptor


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:  # the last owner removes its file
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
