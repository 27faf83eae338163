"""The commands that a job starts in its hosts: the agents' step, and the driver. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm_agent import AgentPlan
from cluster.slurm_job import SlurmJob
from configs.slurm import Slurm

CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """Where a job's Python runs: on the hosts themselves, or in `slurm.container`."""

    slurm: Slurm
    python: str  # of the submitting user, for jobs without a container
    folders: tuple[Path, ...]  # that a container must see, besides the checkout

    @property
    def interpreter(self) -> str:
        return self.slurm.container_python if self.slurm.container else self.python

    def srun_flags(self) -> list[str]:
        """For pyxis, which is a plugin of srun."""
        if self.slurm.container is None or self.slurm.container_tool != "pyxis":
            return []
        return [f"--container-image={self.slurm.container}", f"--container-mounts={','.join(self._mounts())}"]

    def inside(self, command: Sequence[str], gpus: int) -> list[str]:
        """`command`, in the container when it is one that a command enters."""
        if self.slurm.container is None or self.slurm.container_tool != "apptainer":
            return list(command)
        binds = [part for mount in self._mounts() for part in ("--bind", mount)]
        return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, self.slurm.container, *command]

    def _mounts(self) -> list[str]:
        folders = dict.fromkeys(str(folder) for folder in (CHECKOUT, *self.folders))
        return [*(f"{folder}:{folder}" for folder in folders), *self.slurm.container_mounts]


def agents_command(job: SlurmJob, place: Place, plan: AgentPlan) -> list[str]:
    """One step with an agent on each host. It outlives a lost host, and an agent that ends."""
    count = len(job.hosts)
    agent = [place.interpreter, "-m", "cluster.slurm_agent", plan.encode()]
    return [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}"),
        *("--job-name=stoker-agents", "--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--export=ALL"),
        "--unbuffered",
        *place.srun_flags(),
        *place.inside(agent, job.gpus),
    ]


def driver_command(job: SlurmJob, place: Place, recipe: Path, address: str) -> list[str]:
    """`stoker train` on the job's Ray, on the first host."""
    train = [place.interpreter, "-m", "cluster.signal_shield", place.interpreter, "-m", "trainer", "train"]
    command = place.inside([*train, str(recipe), "--address", address], job.gpus)
    flags = place.srun_flags()
    if not flags:
        return command
    step = ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={job.hosts[0]}", "--job-name=stoker-driver", "--overlap")
    return [*step, f"--cpus-per-task={job.cpus}", "--export=ALL", *flags, *command]
