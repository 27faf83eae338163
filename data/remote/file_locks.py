"""Locks between the processes of a node, that end with their holder however it ends."""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# fcntl waits for ever or not at all, so it is asked again, at growing intervals.
_FIRST_POLL_S = 0.002
_LONGEST_POLL_S = 0.05
_FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, pid


def _never() -> bool:
    return False


@contextmanager
def locked_range(
    path: Path, first: int, count: int, at_most_s: float, is_needless: Callable[[], bool] = _never
) -> Iterator[bool]:
    """Hold the numbers first … first+count-1 (below 2**63) of the lock file `path`; it need not be written to.

    Whether they are held: not so if another still had one of them after `at_most_s` (its holder may be stopped), or
    once `is_needless()` says that the lock is not needed any more. Open-file-description locks (fcntl(2)): they exclude
    threads too, and any number of them costs no file. OSError: the file cannot be opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _acquire(descriptor, first, count, time.monotonic() + at_most_s, is_needless)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, first: int, count: int, deadline: float, is_needless: Callable[[], bool]) -> bool:
    poll_s = _FIRST_POLL_S
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
            return True
        except (BlockingIOError, PermissionError):
            if is_needless() or time.monotonic() >= deadline:
                return False
        time.sleep(poll_s)
        poll_s = min(2 * poll_s, _LONGEST_POLL_S)
