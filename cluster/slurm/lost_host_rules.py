"""What a job does about lost hosts: how long it waits for one, which ones it leaves out. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence

from cluster.hosts.resources import count_that_fit
from cluster.run.events import Event, job_of
from cluster.run.job_events import HostLost, HostUnfit, JobStarted
from cluster.slurm.jobs_of_run import since_submitted
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm

__all__ = ["excludable", "rejoin_timeout_s", "unreliable_hosts", "workers_that_fit"]


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


def unreliable_hosts(events: Sequence[Event], job: str) -> list[str]:
    """Those that failed twice in this job, or did not pass their health check; the last to fail is the first."""
    lost: Counter[str] = Counter()
    failed: list[str] = []
    for start in _starts(since_submitted(events, job), job):
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


def excludable(unreliable: Sequence[str], can_do_without: Callable[[Sequence[str]], bool]) -> list[str]:
    """As many of `unreliable`, in this order, as the cluster has others for."""
    chosen: list[str] = []
    for host in unreliable:
        if can_do_without([*chosen, host]):
            chosen.append(host)
    return chosen
