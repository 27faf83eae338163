"""A lock on a file that the kernel frees when its holder dies."""

import fcntl
import os
from pathlib import Path

from configs.errors import RunFolderError

__all__ = ["try_lock"]


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock file `path` (made if missing), or None when another process does.

    Closing it frees the lock. Raises RunFolderError where the file system has no locks, or the file is another user's.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise RunFolderError(f"{path} cannot be locked ({error.strerror}): use a file system with locks") from error
    return descriptor


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as error:
        raise RunFolderError(f"{path} belongs to another user: give this run another run.dir or run.name") from error
