"""`stoker logs`: what the Slurm job of a run says."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from cluster.slurm.jobs_of_run import job_ids, known_state
from cluster.slurm.sbatch_script import output_path
from cluster.slurm.scheduler import SlurmCommands
from configs.errors import RunFolderError
from trainer.commands.checkpoint import open_run

__all__ = ["logs"]


POLL_S = 1.0
STATE_EVERY = 5  # polls; asking Slurm is not free


def logs(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job has ended")] = False,
) -> None:
    """The output of the run's newest Slurm job, all its starts. The workers' own is in RUN_DIR/logs."""
    folder = open_run(run_dir)
    ids = job_ids(Ledger(folder.ledger).events())
    if not ids:
        raise RunFolderError(f"{run_dir} was not submitted to Slurm: see {folder.root / 'logs'}")
    path = output_path(folder.root, ids[-1])
    position = _copy(path, 0)
    if not position and not follow:
        raise RunFolderError(f"job {ids[-1]} has not written anything yet: see `stoker status {run_dir}`, or --follow")
    if follow:
        _follow(folder, ids[-1], path, position)


def _follow(folder: RunFolder, job_id: str, path: Path, position: int) -> None:
    scheduler, polls = SlurmCommands(), 0
    while polls % STATE_EVERY or not _ended(folder, job_id, scheduler):
        time.sleep(POLL_S)
        position, polls = _copy(path, position), polls + 1
    _copy(path, position)


def _ended(folder: RunFolder, job_id: str, scheduler: SlurmCommands) -> bool:
    state = known_state(job_id, Ledger(folder.ledger).events(), scheduler)
    return state.over or state.name == "ENDED"


def _copy(path: Path, position: int) -> int:
    """Print the file from `position` on; where it ends now. It is not there before the job's first start."""
    if not path.exists():
        return position
    with path.open("rb") as file:
        file.seek(position)
        while block := file.read(1 << 16):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return file.tell()
