"""Whether a job goes back into the queue: how its start ended, and what its past says. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.run.events import Event
from cluster.run.job_events import JobCancelled, JobEnded, JobRequeued, JobStarted, Submitted
from cluster.run.run_events import CheckpointPublished
from cluster.slurm.jobs_of_run import since_submitted

__all__ = ["JobEnding", "is_cancelled", "requeues_in_a_row"]


def requeues_in_a_row(events: Sequence[Event], job: str) -> int:
    """Requeues of the job since it was submitted, or since the newest checkpoint."""
    count = 0
    for event in since_submitted(events, job):
        if isinstance(event, CheckpointPublished):
            count = 0
        elif isinstance(event, JobRequeued) and event.job == job:
            count += 1
    return count


def is_cancelled(events: Sequence[Event], job: str) -> bool:
    """Whether `stoker cancel` came, and nothing has come of it yet."""
    kinds = Submitted | JobStarted | JobEnded | JobCancelled
    own = [event for event in events if isinstance(event, kinds) and event.job == job]
    return bool(own) and isinstance(own[-1], JobCancelled)


@dataclass(frozen=True)
class JobEnding:
    """How a start of the job ended: `code` for Slurm, and whether the run is to go on in another start."""

    code: int
    why: str
    requeue: bool = False


def may_requeue(state: str, reason: str) -> bool:
    """Whether it is for the job to requeue itself, by what scontrol says of it.

    A job that is completing while we still run was cancelled or requeued by somebody, unless its time is over.
    """
    return state == "RUNNING" or reason == "TimeLimit"
