"""A private temporary folder that dies with its owner: at once on a clean end, at the next start after a crash."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.processes.file_lock import try_lock

__all__ = ["private_folder", "remove_if_abandoned"]


PREFIX = "stoker-"
OWNER_LOCK = "owner.lock"
# Ray's sockets lie 84 bytes below, and a Unix socket's path has 107 at most (unix(7)).
MAX_PATH_BYTES = 23


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder, mode 0700, locked by this process and removed at the end; `TMPDIR` counts when it is short."""
    base = _base(Path(tempfile.gettempdir()))
    remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    # Locked before it gets the name that `remove_abandoned` looks for.
    descriptor = try_lock(folder / "owner.new")
    try:
        (folder / "owner.new").rename(folder / OWNER_LOCK)
        yield folder
    finally:  # the folder before the lock, or a `remove_abandoned` in between would remove it at the same time
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(base: Path) -> list[Path]:
    """Remove the private folders of this user in `base` whose owner is dead; returns them."""
    return [folder for folder in base.glob(f"{PREFIX}*") if remove_if_abandoned(folder)]


def remove_if_abandoned(folder: Path) -> bool:
    """Remove a private folder of this user if its owner is dead; whether it was."""
    lock = folder / OWNER_LOCK
    with suppress(FileNotFoundError):  # no private folder, or its owner, or another `stoker`, was faster
        if lock.stat().st_uid == os.getuid() and (descriptor := try_lock(lock)) is not None:
            # While the lock is held: another `stoker` that starts now must not begin to remove it too.
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
            return True
    return False


def _base(preferred: Path) -> Path:
    longest = len(os.fsencode(preferred / f"{PREFIX}12345678"))
    return preferred if longest <= MAX_PATH_BYTES else Path("/tmp")
