"""How a job goes back into the queue by itself, when nothing of the run is running any more."""

from collections.abc import Callable, Sequence

from cluster.run.job_events import JobRequeued, Queued
from cluster.run.ledger import Ledger
from cluster.slurm.requeue_rules import JobEnding, is_cancelled, may_requeue, requeues_in_a_row
from cluster.slurm.scheduler import Scheduler
from configs.errors import ClusterError

__all__ = ["refuse_requeue", "requeue"]


def refuse_requeue(
    ending: JobEnding, job_id: str, max_requeues: int, scheduler: Scheduler, ledger: Ledger
) -> str | None:
    """Why the job is not requeued, to be added to a sentence; None when it is. Raises ClusterError."""
    if not ending.requeue:
        return ""
    events = ledger.events()
    if is_cancelled(events, job_id):
        return "; not requeued: `stoker cancel` has come"
    row = requeues_in_a_row(events, job_id)
    if row >= max_requeues:
        return f"; not requeued: {row} times in a row without a newer checkpoint (slurm.max_requeues)"
    found = scheduler.job(job_id)
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    if not may_requeue(state, reason):
        return f"; not requeued by itself: Slurm has the job as {state} ({reason})"
    return None


def requeue(
    ending: JobEnding,
    job_id: str,
    scheduler: Scheduler,
    ledger: Ledger,
    excluded: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Slurm ends this process within seconds (KillWait) of the requeue. Raises ClusterError when it refuses."""
    say(f"requeueing job {job_id}" + (f", without {', '.join(excluded)}" if excluded else ""))
    scheduler.requeue(job_id)
    ledger.append(JobRequeued(job=job_id, reason=ending.why, excluded=list(excluded)))
    ledger.append(Queued(job=job_id))
    if excluded:
        try:
            _exclude(job_id, scheduler, excluded)
        except ClusterError as error:  # the job is in the queue all the same
            say(f"warning: {', '.join(excluded)} may be given to it again: {error}")


def _exclude(job_id: str, scheduler: Scheduler, hosts: Sequence[str]) -> None:
    """Until Slurm ends us the job waits in the queue, and only then can its hosts be excluded."""
    before = scheduler.job(job_id).get("ExcNodeList", "")
    kept = [before] if before not in ("", "(null)") else []
    scheduler.exclude(job_id, [*kept, *hosts])
