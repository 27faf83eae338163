"""Entry point of the job script, on a job's first host: `python -m cluster.slurm_job.batch_main RUN_DIR SUBMISSION`."""

import os
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.hosts.network import free_port
from cluster.run.events import job_of
from cluster.run.job_events import JobEnded, JobRequeued, JobStarted
from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from cluster.slurm.job_environment import SlurmJob
from cluster.slurm.lost_host_rules import excludable, unreliable_hosts
from cluster.slurm.requeue_job import refuse_requeue, requeue
from cluster.slurm.requeue_rules import JobEnding, is_cancelled, requeues_in_a_row
from cluster.slurm.retrying_scheduler import retrying_commands
from cluster.slurm.sbatch_script import slurm_folder, submission_path
from cluster.slurm.scheduler import Scheduler, SlurmCommands
from cluster.slurm.slurm_container import container_of
from cluster.slurm_job.host_agent import AgentPlan, say
from cluster.slurm_job.job_hosts import JobHosts
from cluster.slurm_job.steps import agents_command, driver_command, first_address, orphan_watch_command
from cluster.slurm_job.supervisor import CANCEL, Start, Supervisor, block_signals, job_environment
from configs.checkout import CHECKOUT
from configs.errors import EXIT_REQUEUE, ClusterError, StokerError
from configs.load import load_recipe
from configs.recipe import Recipe
from configs.sections.slurm_section import Slurm


def main(run_folder: Path, submission: int) -> int:
    """One start of the job, from its environment to its end; the exit code for Slurm. Raises StokerError."""
    block_signals()
    job, ledger = SlurmJob.from_env(os.environ), Ledger(RunFolder(run_folder).ledger)
    cancelled = is_cancelled(ledger.events(), job.job_id)  # while it waited in the queue
    note_start(job, ledger)
    say(f"job {job.job_id}, start {job.restarts + 1}, on {', '.join(job.hosts)}")
    recipe = load_recipe(submission_path(run_folder, submission, "yaml"))
    this = _ThisStart(job, recipe, recipe.slurm or Slurm(), run_folder, submission, ledger)
    if cancelled:
        return this.finish(JobEnding(EXIT_REQUEUE, "`stoker cancel` came while the job was requeued"))
    try:
        ending = this.run()
    except StokerError as error:  # the mistakes of a recipe come again, what Slurm or a network did not do may not
        ending = JobEnding(error.exit_code, str(error), requeue=isinstance(error, ClusterError))
    return this.finish(ending)


@dataclass(frozen=True)
class _ThisStart:
    """What the parts of one start of the job share."""

    job: SlurmJob
    recipe: Recipe
    slurm: Slurm
    run_folder: Path
    submission: int
    ledger: Ledger
    scheduler: Scheduler = field(default_factory=lambda: retrying_commands(say))

    def run(self) -> JobEnding:
        """Raises StokerError when it cannot begin."""
        if (ending := self._given_again()) is not None:
            return ending
        token = slurm_folder(self.run_folder) / f"token-{self.job.job_id}"
        try:
            start = _start(self, token)
            without = self.can_do_without
            hosts = JobHosts(self.job, self.slurm, self.recipe.workers, without, self.ledger, say)
            return Supervisor(self.job, self.slurm, hosts, self.scheduler, self.ledger, say).run(start)
        finally:  # the folder is shared, and the token opens the job's Ray
            token.unlink(missing_ok=True)

    def finish(self, ending: JobEnding) -> int:
        """Requeue the job, or write down that it has ended; the exit code."""
        if ending.requeue and CANCEL in signal.sigpending():  # came when the run had left already
            ending = replace(ending, why=f"{ending.why}; cancelled", requeue=False)
        try:
            refusal = refuse_requeue(ending, self.job.job_id, self.slurm.max_requeues, self.scheduler, self.ledger)
            say(ending.why if refusal is None else f"{ending.why}{refusal}")
            if refusal is None:
                requeue(ending, self.job.job_id, self.scheduler, self.ledger, self._excludable(), say)
                return ending.code
        except ClusterError as error:
            say(f"error: {ending.why}; not requeued: {error}")
        self.ledger.append(JobEnded(job=self.job.job_id, code=ending.code, reason=ending.why))
        return ending.code

    def can_do_without(self, hosts: Sequence[str]) -> bool:
        """Whether Slurm could give the job others. Asked once, as it may hold up the start of the run."""
        return SlurmCommands().would_take(submission_path(self.run_folder, self.submission, "sbatch"), hosts)

    def _given_again(self) -> JobEnding | None:
        """An ending before anything started, when Slurm gave us a host to leave out and there are others."""
        given = [host for host in self._excludable() if host in self.job.hosts]
        if not given or requeues_in_a_row(self.ledger.events(), self.job.job_id) >= self.slurm.max_requeues:
            return None
        return JobEnding(EXIT_REQUEUE, f"host {', '.join(given)} failed in this job before", requeue=True)

    def _excludable(self) -> list[str]:
        unreliable = unreliable_hosts(self.ledger.events(), self.job.job_id)
        try:
            return excludable(unreliable, self.can_do_without)
        except ClusterError as error:
            say(f"hosts {', '.join(unreliable)} are not fit, but are not excluded: {error}")
            return []


def note_start(job: SlurmJob, ledger: Ledger) -> None:
    """A start after Slurm requeued the job by itself: nobody could write it down at the time."""
    events = [event for event in ledger.events() if job_of(event) == job.job_id]
    told = sum(isinstance(event, JobRequeued) for event in events)
    if job.restarts > told:
        reason = "by Slurm or an operator: preempted, requeued, or its first host failed"
        ledger.append(JobRequeued(job=job.job_id, reason=reason, excluded=[]))
    ledger.append(JobStarted(job=job.job_id, restarts=job.restarts, hosts=list(job.hosts)))


def _start(this: _ThisStart, token: Path) -> Start:
    job, recipe, slurm = this.job, this.recipe, this.slurm
    write_token(token)
    head = first_address(job.hosts, slurm.interface, this.scheduler)
    container = container_of(recipe, Path.cwd(), CHECKOUT)
    plan = AgentPlan(
        head=job.hosts[0],
        address=f"{head}:{free_port(head)}",
        token=str(token),
        folder=str(this.run_folder),
        cpus=job.cpus,
        gpus=job.gpus,
        memory_bytes=job.memory_bytes,
        interface=slurm.interface,
        job_id=job.job_id,
        hosts=list(job.hosts),
        max_requeues=slurm.max_requeues,
        check_address=f"{head}:{free_port(head)}" if slurm.health_check == "full" else None,
        contained=container is not None,
    )
    environment = {**job_environment(token), "PYTHONPATH": str(CHECKOUT)}
    return Start(
        agents=agents_command(job, sys.executable, plan, container),
        orphan_watch=orphan_watch_command(job, sys.executable, plan) if container else None,
        driver=driver_command(
            job, sys.executable, submission_path(this.run_folder, this.submission, "yaml"), plan, container
        ),
        address=plan.address,
        environment=environment,
    )


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
