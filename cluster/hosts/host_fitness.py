"""Whether this host is fit to take part in a run: memory, space, clock. Asked on each host before anything starts."""

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["OBJECT_STORE_BYTES", "host_problems", "measure_host_health"]


MIB = 1 << 20
OBJECT_STORE_BYTES = 128 * MIB  # Ray Train passes the worker function and its configuration only
_TEMPORARY_BYTES = 256 * MIB  # logs and sockets of a job's own Ray
_CLOCK_S = 10.0
# The system itself has a part of what Slurm gives out.
_MEMORY_PART = 0.75


@dataclass(frozen=True)
class HostHealth:
    """What a host has to give to a run at this moment."""

    memory_bytes: int  # that can be had
    shared_memory_bytes: int
    temporary_bytes: int
    clock_ahead_s: float  # of that of the shared file system's server; 0 on a local disk


def measure_host_health(shared: Path) -> HostHealth:
    """What is free here, and the clock. Raises OSError where `shared` cannot be written.

    `shared`: a folder that all hosts see, and in which this one may write for a moment.
    """
    with tempfile.NamedTemporaryFile(dir=shared, prefix=".clock-") as file:
        before = time.time()
        file.write(b"x")
        file.flush()
        # The server stamps the file: the one clock that all hosts can compare with, without talking to each other.
        ahead_s = before - Path(file.name).stat().st_mtime
    return HostHealth(
        psutil.virtual_memory().available,
        shutil.disk_usage("/dev/shm").free,
        shutil.disk_usage(tempfile.gettempdir()).free,
        ahead_s,
    )


def host_problems(health: HostHealth, needed_memory_bytes: int) -> list[str]:
    """What makes the host unfit for a run that may use so much memory here; pure."""
    found = []
    if health.memory_bytes < _MEMORY_PART * needed_memory_bytes:
        found.append(
            f"{health.memory_bytes // MIB} MiB of memory are free, the run may use {needed_memory_bytes // MIB}"
        )
    if health.shared_memory_bytes < OBJECT_STORE_BYTES:
        found.append(
            f"/dev/shm has {health.shared_memory_bytes // MIB} MiB free, Ray needs {OBJECT_STORE_BYTES // MIB}"
        )
    if health.temporary_bytes < _TEMPORARY_BYTES:
        folder = tempfile.gettempdir()
        found.append(f"{folder} has {health.temporary_bytes // MIB} MiB free, Ray needs {_TEMPORARY_BYTES // MIB}")
    if abs(health.clock_ahead_s) > _CLOCK_S:
        found.append(f"the clock is {health.clock_ahead_s:+.0f} s from that of the shared file system's server")
    return found
