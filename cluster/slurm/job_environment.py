"""The job that this process runs in, by Slurm's environment variables. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from configs.errors import StokerError

__all__ = ["SlurmJob", "expand_hosts"]


MIB = 1 << 20


@dataclass(frozen=True)
class SlurmJob:
    """One start of a job; `hosts` in Slurm's order, the batch script runs on the first."""

    job_id: str  # what scontrol takes: 12, or task 3 of an array, 12_3
    restarts: int
    hosts: tuple[str, ...]
    cpus: int  # of each host, as `gpus` and `memory_bytes`
    gpus: int
    memory_bytes: int | None  # None: Slurm does not limit it

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> "SlurmJob":
        """Raises StokerError outside a job."""
        if "SLURM_JOB_ID" not in environment:
            raise StokerError("SLURM_JOB_ID is not set: this runs inside a job that `stoker submit` has queued")
        cpus = _first_int(environment, "SLURM_CPUS_PER_TASK", "SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_ON_NODE") or 1
        return cls(
            job_id=job_id_of(environment),
            restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
            hosts=tuple(expand_hosts(environment["SLURM_JOB_NODELIST"])),
            cpus=cpus,
            gpus=_first_int(environment, "SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE") or 0,
            memory_bytes=_memory_bytes(environment, cpus),
        )


def job_id_of(environment: Mapping[str, str]) -> str:
    """An array's tasks have ids of their own too, but scontrol would requeue all tasks for the first one's."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def _first_int(environment: Mapping[str, str], *names: str) -> int | None:
    """The last number in front of any `(x3)`, since a gpu count may have its type before it (a100:4)."""
    for name in names:
        if found := re.match(r"(?:.*?:)?(\d+)", environment.get(name, "").partition("(")[0]):
            return int(found[1])
    return None


def _memory_bytes(environment: Mapping[str, str], cpus: int) -> int | None:
    if per_node := _first_int(environment, "SLURM_MEM_PER_NODE"):
        return per_node * MIB
    per_cpu = _first_int(environment, "SLURM_MEM_PER_CPU")
    return per_cpu * cpus * MIB if per_cpu else None


def expand_hosts(text: str) -> list[str]:
    """Slurm's host list written out: `n[1-2,05]-x,login` is n1-x, n2-x, n05-x, login."""
    return [host for part in _split(text) for host in _expand(part)]


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    return re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)


def _expand(part: str) -> list[str]:
    found = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if found is None:
        return [part]
    head, ranges, tail = found.groups()
    numbers = [number for each in ranges.split(",") for number in _numbers(each)]
    # The rest may have brackets too: rack[1-2]n[1-4].
    return [f"{head}{number}{rest}" for number in numbers for rest in _expand(tail)]


def _numbers(text: str) -> list[str]:
    first, _, last = text.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
