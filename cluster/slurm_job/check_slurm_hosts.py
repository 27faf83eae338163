"""The health check on hosts that Slurm gives, or has given: one `srun`, without a job of Stoker around it."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.hosts.health_process import TIMEOUT_S
from cluster.hosts.health_report import CheckPlan, HostReport
from cluster.slurm.job_environment import expand_hosts
from cluster.slurm.scheduler import Scheduler
from cluster.slurm_job.steps import first_address
from configs.checkout import CHECKOUT
from configs.errors import ClusterError

__all__ = ["check_hosts", "plan_of_task"]


_FIRST_PORT, _PORTS = 20000, 10000  # rank 0's port follows from the step's id: no task can ask another one for it
_QUEUED_S = 600.0  # that srun may wait for hosts


def plan_of_task(environment: Mapping[str, str], folder: Path, scheduler: Scheduler) -> CheckPlan:
    """This task's part of a step with one task per host."""
    hosts = tuple(expand_hosts(environment["SLURM_STEP_NODELIST"]))
    step = int(environment["SLURM_JOB_ID"]) * 16 + int(environment["SLURM_STEP_ID"])
    address = f"{first_address(hosts, None, scheduler)}:{_FIRST_PORT + step % _PORTS}"
    return CheckPlan(str(folder), hosts, int(environment["SLURM_NODEID"]), address)


def step_command(folder: Path, nodes: int, flags: Sequence[str]) -> list[str]:
    """The srun that checks `nodes` hosts, one task on each; `flags` are the user's, for srun. Pure."""
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--job-name=stoker-doctor"),
        *("--overlap", "--export=ALL", "--kill-on-bad-exit=0", *flags),
        *(sys.executable, "-m", "trainer.host_health.measure_host", "--slurm", str(folder)),
    ]


def check_hosts(folder: Path, nodes: int, flags: Sequence[str], environment: Mapping[str, str]) -> list[HostReport]:
    """The hosts' reports, by name.

    Raises ClusterError when Slurm does not start the check, or not all of it comes back.
    """
    command = step_command(folder.resolve(), nodes, flags)
    try:
        done = subprocess.run(
            command,
            env={**environment, "PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_QUEUED_S + TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError("there is no srun here: --nodes is for hosts of a Slurm cluster") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"srun did not end within {_QUEUED_S + TIMEOUT_S:.0f} s: are {nodes} hosts free?") from error
    reports = [HostReport.from_dict(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(reports) < nodes:
        names = ", ".join(report.host for report in reports) or "none"
        words = "; ".join(done.stderr.strip().splitlines()[-3:])
        raise ClusterError(f"of {nodes} hosts, only {names} ended the check (exit {done.returncode}): {words}")
    return sorted(reports, key=lambda report: report.host)
