"""The Slurm jobs of a run, by its ledger."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.run.events import Event, job_of
from cluster.run.job_events import (
    HostBack,
    HostLost,
    JobCancelled,
    JobEnded,
    JobRequeued,
    JobStarted,
    JobWarned,
    Queued,
    Submitted,
)
from cluster.slurm.scheduler import JobState, Scheduler
from configs.errors import ClusterError

__all__ = ["job_ids", "known_state", "live_jobs"]


@dataclass(frozen=True)
class KnownJob:
    """A job of the run, and where it stands."""

    job_id: str
    state: JobState


def job_ids(events: Sequence[Event]) -> list[str]:
    """Of all jobs that were submitted for the run, oldest first."""
    return list(dict.fromkeys(event.job for event in events if isinstance(event, Submitted)))


def known_state(job_id: str, events: Sequence[Event], scheduler: Scheduler) -> JobState:
    """What Slurm says; what the ledger says when Slurm is not to be had here, or has forgotten the job.

    A job that Slurm has forgotten is over, whatever was written down last: it may have been killed.
    """
    try:
        state = scheduler.state(job_id)
    except ClusterError:
        return from_ledger(job_id, events)
    if state is not None:
        return state
    told = from_ledger(job_id, events)
    return told if told.name in ("ENDED", "CANCELLED") else JobState("ENDED", "forgotten by Slurm", "squeue")


_NAMES: dict[type[Event], str] = {
    **{Submitted: "PENDING", Queued: "PENDING", JobRequeued: "PENDING", JobStarted: "RUNNING"},
    **{JobWarned: "RUNNING", HostLost: "RUNNING", HostBack: "RUNNING"},
    **{JobEnded: "ENDED", JobCancelled: "CANCELLED"},
}


def from_ledger(job_id: str, events: Sequence[Event]) -> JobState:
    """By the last event of the job."""
    own = [type(event) for event in events if job_of(event) == job_id and type(event) in _NAMES]
    return JobState(_NAMES[own[-1]] if own else "UNKNOWN", source="the ledger")


def live_jobs(events: Sequence[Event], scheduler: Scheduler) -> list[KnownJob]:
    """Those that wait, run, or are in a state that we do not know."""
    known = [KnownJob(job_id, known_state(job_id, events, scheduler)) for job_id in job_ids(events)]
    return [job for job in known if not job.state.over and job.state.name != "ENDED"]


def since_submitted(events: Sequence[Event], job: str) -> Sequence[Event]:
    submitted = [at for at, event in enumerate(events) if isinstance(event, Submitted) and event.job == job]
    return events[submitted[-1] :] if submitted else events
