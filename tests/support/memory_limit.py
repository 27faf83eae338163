"""The kernel's own killing for want of memory, of one process: a memory cgroup with next to no room (v1 or v2)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_ROOT, _LIMIT = (_V1, "memory.limit_in_bytes") if _V1.is_dir() else (_V2, "memory.max")
_ROOM_BYTES = 256 << 10
CAN_LIMIT_MEMORY = os.access(_ROOT, os.W_OK) and (_ROOT / "cgroup.procs").exists()


@contextmanager
def no_more_memory(pid: int) -> Iterator[None]:
    """Whatever the process takes from now on soon is too much: the kernel kills it."""
    group = _ROOT / f"stoker-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / _LIMIT).write_text(str(_ROOM_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        group.rmdir()
