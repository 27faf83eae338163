"""Every process below this one can be ended, those included that left their parent, group or session."""

import ctypes
import os
import signal
import time
from contextlib import suppress

import psutil

__all__ = ["adopt_orphans", "die_with_parent", "end_descendants", "set_process_name"]


# Of linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_NAME_BYTES = 15  # and a zero
_KILL_POLL_S = 0.05  # between two rounds of SIGKILL: a process may fork while the tree is being read


def adopt_orphans() -> None:
    """From now on, descendants of this process whose parent dies become its children, not those of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int | None = None) -> None:
    """SIGKILL for this process when its parent ends (prctl(2)). For `preexec_fn`, or just after a fork.

    With `parent`, its id, this process exits at once where it has ended already: the kernel tells only of later ends.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # After the prctl: asked before, a parent that ends in between would be noticed by neither.
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def end_descendants(timeout_s: float) -> list[int]:
    """Kill all processes below this one, which must have called `adopt_orphans`; ids of those that would not end."""
    deadline = time.monotonic() + timeout_s
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()  # adopted processes are our children: a zombie would count as left for ever
        if time.monotonic() > deadline:
            return [process.pid for process in left]
        time.sleep(_KILL_POLL_S)
    return []


def set_process_name(name: str) -> None:
    """What `ps -o comm` and `top` show of this process: the first 15 bytes of `name`."""
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES])


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int | bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")
