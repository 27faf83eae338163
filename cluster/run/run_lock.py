"""One `stoker train` at a time in a run folder: a lock that the kernel frees when its holder dies."""

import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.processes.file_lock import try_lock
from cluster.run.run_folder import RunFolder
from configs.errors import RunFolderError

__all__ = ["RunLock", "is_held"]


RETRY_S = 0.2  # `is_held` of a `stoker status` has the lock for a moment


def is_held(folder: Path) -> bool:
    """Whether a live process holds the lock of run folder `folder`."""
    path = RunFolder(folder).lock
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class RunLock:
    """Holds `folder`/.lock inside a `with`. Raises RunFolderError naming the holder when another process has it."""

    def __init__(self, folder: Path) -> None:
        self.path = RunFolder(folder).lock
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = try_lock(self.path)
        if descriptor is None:
            time.sleep(RETRY_S)
            descriptor = try_lock(self.path)
        if descriptor is None:
            raise RunFolderError(
                f"another `stoker train` ({_holder(self.path)}) is using {self.path.parent}; "
                "wait for it or stop it, or give this run another run.name"
            )
        self._descriptor = descriptor
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        # The file stays: removing it would let two processes lock two files of one name.
        os.close(self._descriptor)
        self._descriptor = None


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError:  # the holder has the lock, but has not written its name yet
        return "starting"
    return f"pid {found['pid']}, host {found['host']}, since {found['since']}"
