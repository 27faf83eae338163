"""What this machine has, and whether a run fits: asked before anything is started."""

import math
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from configs.errors import ResourceError, RunFolderError
from configs.recipe import Workers

__all__ = [
    "available_cpus",
    "available_gpus",
    "check_disk",
    "check_resources",
    "check_writable",
    "count_that_fit",
    "cpus_of_workers",
    "fitting_workers",
]


GIB = 1 << 30
_SHARES = 10_000  # of a cpu


def check_resources(workers: Workers, *, cpus: int, gpus: int) -> None:
    """Raises ResourceError when `workers` need more than the `cpus` and `gpus` of this machine."""
    for unit, each, found in (("cpus", workers.cpus, cpus), ("gpus", workers.gpus, gpus)):
        if each and count_that_fit(each, found) < workers.least:
            fits = count_that_fit(each, found)
            remedy = f"lower workers.count to {fits}" if fits else f"lower workers.{unit}"
            raise ResourceError(
                f"workers.count {workers.least} × workers.{unit} {each} needs {workers.least * each:g} {unit}, "
                f"this machine has {found}: {remedy}, or use a larger machine"
            )


def fitting_workers(workers: Workers, *, cpus: int, gpus: int) -> int:
    """How many of an elastic range of workers fit on this machine; check_resources has passed."""
    fits = [count_that_fit(each, found) for each, found in ((workers.cpus, cpus), (workers.gpus, gpus)) if each]
    return min(workers.most, *fits)


def count_that_fit(each: float, found: float) -> int:
    """How many times, in Ray's smallest share: 0.1 goes into 1 ten times, where 1 // 0.1 is 9."""
    return round(found * _SHARES) // round(each * _SHARES)


def cpus_of_workers(count: int, each: float) -> int:
    """As many as `count` workers with `each` need."""
    return -(-count * round(each * _SHARES) // _SHARES)


def available_cpus() -> int:
    """Cpus this process may use: its affinity, within the cgroup's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_cpus(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def cgroup_cpus(root: Path, membership: str) -> float | None:
    """The tightest quota, in cpus, of the cgroups in `membership` (/proc/self/cgroup) and their parents; None: none."""
    quotas = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu,cpuacct", "cpu"):
            continue
        base = root / controllers
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            quotas.append(_quota_v1(folder) if controllers else _quota_v2(folder))
            folder = folder.parent
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    if not (folder / "cpu.max").exists():
        return None
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    if not (folder / "cpu.cfs_quota_us").exists():
        return None
    quota_us = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota_us < 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())


def available_gpus() -> int:
    """NVIDIA gpus this process may use: those of CUDA_VISIBLE_DEVICES that exist, else all."""
    found = _nvidia_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, visible_gpus(visible))


def visible_gpus(value: str) -> int:
    """Entries of a CUDA_VISIBLE_DEVICES value; like CUDA, nothing counts from the first negative one on."""
    count = 0
    for entry in value.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return count


def _nvidia_gpus() -> int:
    drivers = Path("/proc/driver/nvidia/gpus")
    if drivers.is_dir():
        return len(list(drivers.iterdir()))
    tool = shutil.which("nvidia-smi")  # containers and WSL may hide /proc/driver
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises ResourceError when the file system of `folder` (which may not exist yet) has less than `needed_bytes`."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"{folder} has {free_bytes / GIB:.2f} GiB free, checkpoints need {needed_bytes / GIB:.2f} GiB: "
            "free some space, keep fewer (checkpoint.keep_last, keep_every_steps), or set checkpoint.dir elsewhere"
        )


def check_writable(folder: Path) -> None:
    """Makes `folder` and tries a file in it. Raises RunFolderError with the cause when that fails."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        cause = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise RunFolderError(f"run folder {folder} cannot be written: {cause}; set run.dir to a writable folder") from (
            error
        )
