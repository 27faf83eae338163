"""The commands that a job starts on its hosts: the agents' step, and the driver. Pure."""

from pathlib import Path

from cluster.slurm_agent import AgentPlan
from cluster.slurm_job import SlurmJob

CHECKOUT = Path(__file__).parents[1]


def agents_command(job: SlurmJob, python: str, plan: AgentPlan) -> list[str]:
    """One step with an agent on each host. It outlives a lost host, and an agent that ends."""
    count = len(job.hosts)
    return [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}"),
        *("--job-name=stoker-agents", "--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--export=ALL"),
        *("--unbuffered", python, "-m", "cluster.slurm_agent", plan.encode()),
    ]


def driver_command(python: str, recipe: Path, address: str) -> list[str]:
    """`stoker train` on the job's Ray, on the first host."""
    shielded = [python, "-m", "cluster.signal_shield", python, "-m", "trainer", "train"]
    return [*shielded, str(recipe), "--address", address]
