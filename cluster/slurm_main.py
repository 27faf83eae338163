"""Entry point of the job script: `python -m cluster.slurm_main RUN_DIR SUBMISSION`, on the first host of a job."""

import os
import secrets
import sys
from pathlib import Path

from cluster.host_network import free_port
from cluster.ledger import Ledger
from cluster.slurm_address import first_address
from cluster.slurm_agent import AgentPlan, say
from cluster.slurm_decisions import Ending, excludable, unreliable_hosts
from cluster.slurm_job import SlurmJob
from cluster.slurm_queue import Scheduler, SlurmCommands
from cluster.slurm_requeue import refuse_requeue, requeue
from cluster.slurm_script import slurm_folder, submission_path
from cluster.slurm_steps import CHECKOUT, agents_command, driver_command
from cluster.slurm_supervisor import Start, Supervisor, block_signals, job_environment
from configs.errors import EXIT_REQUEUE, ClusterError, StokerError
from configs.load import load_recipe
from configs.recipe import Recipe
from configs.slurm import Slurm


def main(run_folder: Path, submission: int) -> int:
    block_signals()
    job = SlurmJob.from_env(os.environ)
    recipe_path = submission_path(run_folder, submission, "yaml")
    recipe = load_recipe(recipe_path)
    slurm = recipe.slurm or Slurm()
    ledger = Ledger(run_folder / "ledger.jsonl")
    scheduler: Scheduler = SlurmCommands()
    note_start(job, ledger)
    say(f"job {job.job_id}, start {job.restarts + 1}, on {', '.join(job.hosts)}")
    ending = _unfit(job, ledger, scheduler, slurm)
    if ending is None:
        token = slurm_folder(run_folder) / f"token-{job.job_id}"
        try:
            start = _start(job, recipe, recipe_path, run_folder, token, scheduler)
            ending = Supervisor(job, slurm, recipe.workers, scheduler, ledger, say).run(start)
        finally:
            token.unlink(missing_ok=True)
    excluded = _excluded(ledger, scheduler, slurm, len(job.hosts)) if ending.requeue else []
    refusal = refuse_requeue(ending, job.job_id, slurm.max_requeues, scheduler, ledger)
    say(ending.why if refusal is None else f"{ending.why}{refusal}")
    if refusal is None:
        requeue(ending, job.job_id, scheduler, ledger, excluded, say)
        return ending.code
    ledger.append("job_ended", job=job.job_id, code=ending.code, reason=ending.why)
    return ending.code


def note_start(job: SlurmJob, ledger: Ledger) -> None:
    """A start after Slurm requeued the job by itself: nobody could write it down at the time."""
    events = [event for event in ledger.events() if event.get("job") == job.job_id]
    told = sum(event["event"] == "requeued" for event in events)
    if job.restarts > told:
        reason = "by Slurm or an operator: preempted, requeued, or its first host failed"
        ledger.append("requeued", job=job.job_id, reason=reason, excluded=[])
    ledger.append("job_started", job=job.job_id, restarts=job.restarts, hosts=list(job.hosts))


def _unfit(job: SlurmJob, ledger: Ledger, scheduler: Scheduler, slurm: Slurm) -> Ending | None:
    """An ending before anything started, when Slurm gave us a host to leave out and there are others."""
    given = [host for host in _excluded(ledger, scheduler, slurm, len(job.hosts)) if host in job.hosts]
    if not given:
        return None
    return Ending(EXIT_REQUEUE, f"host {', '.join(given)} failed in this run before", requeue=True)


def _excluded(ledger: Ledger, scheduler: Scheduler, slurm: Slurm, needed: int) -> list[str]:
    unreliable = unreliable_hosts(ledger.events())
    if not unreliable:
        return []
    try:
        return excludable(unreliable, scheduler.hosts(slurm.partition), needed)
    except ClusterError as error:
        say(f"hosts {', '.join(unreliable)} are not fit, but are not excluded: {error}")
        return []


def _start(
    job: SlurmJob, recipe: Recipe, recipe_path: Path, run_folder: Path, token: Path, scheduler: Scheduler
) -> Start:
    slurm = recipe.slurm or Slurm()
    write_token(token)
    head = first_address(job.hosts, slurm.interface, scheduler)
    plan = AgentPlan(
        head=job.hosts[0],
        address=f"{head}:{free_port(head)}",
        token=str(token),
        folder=str(run_folder),
        cpus=job.cpus,
        gpus=job.gpus,
        memory_bytes=job.memory_bytes,
        interface=slurm.interface,
        job_id=job.job_id,
        hosts=list(job.hosts),
        max_requeues=slurm.max_requeues,
        check_address=f"{head}:{free_port(head)}" if slurm.health_check == "full" else None,
    )
    environment = {**job_environment(token), "PYTHONPATH": str(CHECKOUT)}
    driver = driver_command(sys.executable, recipe_path, plan.address)
    return Start(agents_command(job, sys.executable, plan), driver, plan.address, environment)


def write_token(path: Path) -> None:
    """Only its owner may ever read it, not even for a moment in between."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(descriptor)


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]), int(sys.argv[2]))
    except StokerError as error:
        say(f"error: {error}")
        code = error.exit_code
    sys.exit(code)
