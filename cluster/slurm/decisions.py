"""What a job does about a lost host, a warning and its own past. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.hosts.resources import count_that_fit
from cluster.run.events import Event, job_of
from cluster.run.job_events import HostLost, HostUnfit, JobCancelled, JobEnded, JobRequeued, JobStarted, Submitted
from cluster.run.run_events import CheckpointPublished
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm

__all__ = [
    "JobEnding",
    "excludable",
    "is_cancelled",
    "rejoin_timeout_s",
    "requeues_in_a_row",
    "unreliable_hosts",
    "workers_that_fit",
]


REJOIN_S = 15.0  # a Ray that died, rather than its host, is back by then
TWICE = 2


def workers_that_fit(workers: Workers, hosts: int, cpus: int, gpus: int) -> int:
    """On `hosts` with `cpus` and `gpus` each."""
    per_host = count_that_fit(workers.cpus, cpus)
    if workers.gpus:
        per_host = min(per_host, gpus // workers.gpus)
    return hosts * per_host


def rejoin_timeout_s(slurm: Slurm, workers: Workers, room: int) -> float | None:
    """How long the run goes on without a lost host; None: for good. `room`: the workers that fit on what is left."""
    if room >= workers.most:  # it was a spare one
        return None
    if slurm.on_node_loss == "wait":
        return float(slurm.wait_s)
    return None if slurm.on_node_loss == "continue" and room >= workers.least else REJOIN_S


def requeues_in_a_row(events: Sequence[Event], job: str) -> int:
    """Requeues of the job since it was submitted, or since the newest checkpoint."""
    count = 0
    for event in _since_submitted(events, job):
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


def unreliable_hosts(events: Sequence[Event], job: str) -> list[str]:
    """Those that failed twice in this job, or did not pass their health check; the last to fail is the first."""
    lost: Counter[str] = Counter()
    failed: list[str] = []
    for start in _starts(_since_submitted(events, job), job):
        blamed = _blamed(start)
        for event in start:
            if isinstance(event, HostLost):
                lost[event.host] += event.host in blamed
            if isinstance(event, HostUnfit) or (isinstance(event, HostLost) and lost[event.host] >= TWICE):
                failed.append(event.host)
    return list(dict.fromkeys(reversed(failed)))


def _starts(events: Sequence[Event], job: str) -> list[list[Event]]:
    starts: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, JobStarted) and event.job == job:
            starts.append([])
        if job_of(event) == job:
            starts[-1].append(event)
    return starts


def _blamed(start: Sequence[Event]) -> set[str]:
    """Of the hosts that were lost in one start, those that may be the cause: if it was the first one, it alone."""
    lost = {event.host for event in start if isinstance(event, HostLost)}
    hosts = [host for event in start if isinstance(event, JobStarted) for host in event.hosts]
    head, others = hosts[:1], hosts[1:]
    if lost.intersection(head):
        return set(head)
    return set() if len(others) > 1 and lost >= set(others) else lost


def _since_submitted(events: Sequence[Event], job: str) -> Sequence[Event]:
    submitted = [at for at, event in enumerate(events) if isinstance(event, Submitted) and event.job == job]
    return events[submitted[-1] :] if submitted else events


def excludable(unreliable: Sequence[str], can_do_without: Callable[[Sequence[str]], bool]) -> list[str]:
    """As many of `unreliable`, in this order, as the cluster has others for."""
    chosen: list[str] = []
    for host in unreliable:
        if can_do_without([*chosen, host]):
            chosen.append(host)
    return chosen


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
