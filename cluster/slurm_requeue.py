"""How a job goes back into the queue by itself, when nothing of the run is running any more."""

from collections.abc import Callable, Sequence

from cluster.ledger import Ledger
from cluster.slurm_decisions import Ending, may_requeue, requeues_in_a_row
from cluster.slurm_queue import Scheduler
from configs.errors import ClusterError


def refuse_requeue(ending: Ending, job_id: str, max_requeues: int, scheduler: Scheduler, ledger: Ledger) -> str | None:
    """Why the job is not requeued, to be added to a sentence; None when it is."""
    if not ending.requeue:
        return ""
    try:
        found = scheduler.job(job_id)
    except ClusterError as error:
        return f"; not requeued: {error}"
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    if not may_requeue(state, reason):
        return f"; not requeued by itself: Slurm has the job as {state} ({reason})"
    row = requeues_in_a_row(ledger.events())
    if row >= max_requeues:
        return f"; not requeued: {row} times in a row without a newer checkpoint (slurm.max_requeues)"
    return None


def requeue(
    ending: Ending,
    job_id: str,
    scheduler: Scheduler,
    ledger: Ledger,
    excluded: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Written down first: Slurm ends this process within seconds of the requeue."""
    ledger.append("requeued", job=job_id, reason=ending.why, excluded=list(excluded))
    ledger.append("queued", job=job_id)
    say(f"requeueing job {job_id}" + (f", without {', '.join(excluded)}" if excluded else ""))
    scheduler.requeue(job_id)
    if excluded:
        # Until Slurm ends us the job waits in the queue, and only then can its hosts be excluded.
        before = scheduler.job(job_id).get("ExcNodeList", "")
        kept = [before] if before not in ("", "(null)") else []
        scheduler.exclude(job_id, [*kept, *excluded])
