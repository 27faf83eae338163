"""`stoker cancel`: take a run's Slurm job back."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.run.job_events import JobCancelled
from cluster.run.ledger import Ledger
from cluster.slurm.jobs_of_run import live_jobs
from cluster.slurm.scheduler import SlurmCommands
from configs.errors import RunFolderError
from trainer.commands.checkpoint import open_run
from trainer.terminal import say

__all__ = ["cancel"]


def cancel(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    now: Annotated[bool, typer.Option("--now", help="at once, without a last checkpoint")] = False,
) -> None:
    """End the run's Slurm jobs for good: a running one saves a checkpoint first."""
    folder = open_run(run_dir)
    ledger, scheduler = Ledger(folder.ledger), SlurmCommands()
    live = live_jobs(ledger.events(), scheduler)
    if not live:
        raise RunFolderError(f"{run_dir} has no Slurm job that waits or runs")
    for job in live:
        if job.state.name == "RUNNING" and not now:
            scheduler.interrupt(job.job_id)
            say(f"job {job.job_id}: saving a checkpoint at the next step boundary, then leaving")
        else:
            scheduler.cancel(job.job_id)
            say(f"job {job.job_id}: cancelled ({job.state.name} before)")
        ledger.append(JobCancelled(job=job.job_id))
