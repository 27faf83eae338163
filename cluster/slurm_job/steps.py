"""The commands that a job starts on its hosts: the agents' step, the orphan watch beside it, the driver. Pure."""

import socket
from collections.abc import Sequence
from pathlib import Path

from cluster.hosts.network import address_towards, interface_address
from cluster.slurm.job_environment import SlurmJob
from cluster.slurm.scheduler import Scheduler
from cluster.slurm.slurm_container import Container, python_command
from cluster.slurm_job.host_agent import AgentPlan
from configs.checkout import CHECKOUT

_MODULES = f"PYTHONPATH={CHECKOUT}"


def agents_command(job: SlurmJob, python: str, plan: AgentPlan, container: Container | None) -> list[str]:
    """One step with an agent on each host. It outlives a lost host, and an agent that ends: --no-kill, --wait=0."""
    flags = container.step_flags if container else []
    agent = ["-m", "cluster.slurm_job.host_agent", plan.encode()]
    return [*_on_each_host(job, "stoker-agents"), *flags, *python_command(container, python, [_MODULES], agent)]


def orphan_watch_command(job: SlurmJob, python: str, plan: AgentPlan) -> list[str]:
    """Beside agents in containers, where Slurm's commands are not."""
    return [*_on_each_host(job, "stoker-orphan-watch"), python, "-m", "cluster.slurm_job.orphan_step", plan.encode()]


def _on_each_host(job: SlurmJob, name: str) -> list[str]:
    count = len(job.hosts)
    return [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}"),
        *(f"--job-name={name}", "--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--export=ALL"),
        "--unbuffered",
    ]


def driver_command(job: SlurmJob, python: str, recipe: Path, plan: AgentPlan, container: Container | None) -> list[str]:
    """`stoker train` on the job's Ray, on the first host."""
    own = container.python if container else python
    arguments = [
        "-m",
        "cluster.processes.signal_shield",
        own,
        "-m",
        "trainer",
        "train",
        str(recipe),
        "--address",
        plan.address,
    ]
    variables = [_MODULES, "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={plan.token}"]
    command = python_command(container, python, variables, arguments)
    if container is None or not container.step_flags:
        return command
    return [
        *("srun", "--nodes=1", "--ntasks=1", f"--nodelist={plan.head}", f"--cpus-per-task={job.cpus}", "--overlap"),
        *("--job-name=stoker-driver", "--export=ALL", "--unbuffered", "--input=none"),
        *(*container.step_flags, *command),
    ]


def first_address(hosts: Sequence[str], interface: str | None, scheduler: Scheduler) -> str:
    """That of the first host's `interface`, else where Slurm reaches it. Asked there, or without an interface."""
    if interface:
        return interface_address(interface)
    own = socket.gethostbyname(scheduler.node_address(hosts[0]))
    if not own.startswith("127.") or len(hosts) == 1:
        return own
    # Debian's /etc/hosts has the host's own name as 127.0.1.1.
    return address_towards(socket.gethostbyname(scheduler.node_address(hosts[1])))
