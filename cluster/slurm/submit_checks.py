"""What would go wrong with a job on this cluster, found before it is queued. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from cluster.hosts.resources import cpus_of_workers
from cluster.slurm.lost_host_rules import workers_that_fit
from configs.errors import ResourceError
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm, memory_bytes, time_s

__all__ = ["HostShape", "check_memory", "check_warning", "cluster_warnings", "host_shape", "local_paths"]


GIB = 1 << 30
SHORT_KILL_WAIT_S = 10
# File systems that one host alone has, unless the cluster is this one host.
_LOCAL = ("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs")


@dataclass(frozen=True)
class HostShape:
    """What the job asks for on each host."""

    cpus: int
    gpus: int
    workers: int


def host_shape(workers: Workers, slurm: Slurm) -> HostShape:
    """Raises ResourceError when the workers do not fit in what `slurm` asks for."""
    each = -(-workers.most // (slurm.nodes - slurm.spare_nodes))
    cpus = slurm.cpus_per_node or cpus_of_workers(each, workers.cpus)
    gpus = each * workers.gpus if slurm.gpus_per_node is None else slurm.gpus_per_node
    fitting = workers_that_fit(workers, slurm.nodes, cpus, gpus)
    if fitting < workers.least:
        raise ResourceError(
            f"workers.count {workers.count} × ({workers.cpus} cpus, {workers.gpus} gpus) does not fit in slurm.nodes "
            f"{slurm.nodes} × ({cpus} cpus, {gpus} gpus), which has room for {fitting}: ask for more, or lower it"
        )
    return HostShape(cpus, gpus, min(each, fitting // slurm.nodes or 1))


def check_memory(
    slurm: Slurm, shape: HostShape, worker_bytes: int, config: Mapping[str, str], partition: Mapping[str, str]
) -> None:
    """Raises ResourceError when the state of a host's workers alone is more than the job's memory there."""
    given, origin = _memory(slurm, shape, {**config, **partition})
    needed = worker_bytes * shape.workers
    if given is not None and needed > given:
        raise ResourceError(
            f"{shape.workers} workers on a host need at least {needed / GIB:.2f} GiB, the job has "
            f"{given / GIB:.2f} GiB ({origin}): set slurm.memory, or use more nodes"
        )


def _memory(slurm: Slurm, shape: HostShape, settings: Mapping[str, str]) -> tuple[int | None, str]:
    if slurm.memory is not None:
        return memory_bytes(slurm.memory) or None, "slurm.memory"  # 0: all of the host
    for name, factor in (("DefMemPerNode", 1), ("DefMemPerCPU", shape.cpus)):
        if settings.get(name, "").isdecimal():
            return int(settings[name]) * factor * (1 << 20), f"the cluster's {name}"
    return None, ""


def check_warning(slurm: Slurm, step_s: float | None, checkpoint_s: float | None) -> None:
    """Raises ResourceError when a step and a checkpoint, as measured so far, do not fit between warning and end."""
    limit_s = None if slurm.time is None else time_s(slurm.time)
    if limit_s is not None and limit_s <= slurm.warning_s:
        raise ResourceError(
            f"slurm.warning_s is {slurm.warning_s}, but slurm.time gives {limit_s} s: the job would be warned at once"
        )
    needed_s = (step_s or 0.0) + (checkpoint_s or 0.0)
    if needed_s > slurm.warning_s:
        raise ResourceError(
            f"slurm.warning_s is {slurm.warning_s}, but in this run a step took {step_s or 0:.1f} s and a checkpoint "
            f"{checkpoint_s or 0:.1f} s: raise it to {2 * int(needed_s + 1)}"
        )


def cluster_warnings(slurm: Slurm, config: Mapping[str, str], partition: Mapping[str, str]) -> list[str]:
    """Settings of the cluster that cost steps or time."""
    found = []
    preempts = config.get("PreemptType", "preempt/none") != "preempt/none" and partition.get("PreemptMode") != "OFF"
    grace_s = int(re.match(r"\d*", partition.get("GraceTime", "0"))[0] or 0)  # type: ignore[index]
    if preempts and "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        found.append(
            "jobs here are preempted without a warning (SlurmctldParameters has no preempt_send_user_signal): the "
            "steps since the last checkpoint are lost each time; lower checkpoint.every_steps"
        )
    elif preempts and grace_s < slurm.warning_s:
        found.append(
            f"a preempted job has {grace_s} s here (GraceTime of the partition), less than slurm.warning_s "
            f"{slurm.warning_s}: a step and a checkpoint must fit in that"
        )
    if config.get("JobRequeue") == "0" and slurm.max_requeues:
        found.append("requeueing is off by default here (JobRequeue=0); the job asks for it by --requeue")
    kill_wait_s = re.match(r"\d+", config.get("KillWait", ""))
    if kill_wait_s and int(kill_wait_s[0]) < SHORT_KILL_WAIT_S:
        found.append(f"KillWait is {kill_wait_s[0]} s: nothing that outlasts the time limit is saved")
    return found


def local_paths(paths: Iterable[Path], mounts: str) -> list[str]:
    """Those of `paths` that seem to be on a disk of this host alone, by the text of /proc/self/mounts."""
    points = [(PurePath(_unescaped(line.split()[1])), line.split()[2]) for line in mounts.splitlines() if line.strip()]
    found = []
    for path in paths:
        above = [(point, kind) for point, kind in points if path.is_relative_to(point)]
        kind = max(above, key=lambda entry: len(entry[0].parts))[1] if above else ""
        if kind in _LOCAL:
            found.append(f"{path} ({kind})")
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
