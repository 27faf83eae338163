"""What a job does about a lost host, a warning and its own past. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.recipe import Workers
from configs.slurm import Slurm

REJOIN_S = 15.0  # a Ray that died, rather than its host, is back by then
TWICE = 2
Event = dict[str, Any]


def workers_that_fit(workers: Workers, hosts: int, cpus: int, gpus: int) -> int:
    """On `hosts` with `cpus` and `gpus` each."""
    per_host = cpus // workers.cpus
    if workers.gpus:
        per_host = min(per_host, gpus // workers.gpus)
    return hosts * per_host


def patience_s(slurm: Slurm, workers: Workers, room: int) -> float | None:
    """How long the run goes on without a lost host; None: for good. `room`: the workers that fit on what is left."""
    if room >= workers.most:  # it was a spare one
        return None
    if slurm.on_node_loss == "wait":
        return float(slurm.wait_s)
    return None if slurm.on_node_loss == "continue" and room >= workers.least else REJOIN_S


def requeues_in_a_row(events: Sequence[Event]) -> int:
    """Requeues since the newest checkpoint."""
    count = 0
    for event in events:
        count = 0 if event["event"] == "checkpoint" else count + (event["event"] == "requeued")
    return count


def unreliable_hosts(events: Sequence[Event]) -> list[str]:
    """Those that failed twice in this run, or did not pass their health check."""
    lost = Counter(str(event["host"]) for event in events if event["event"] == "host_lost")
    unfit = {str(event["host"]) for event in events if event["event"] == "host_unfit"}
    return sorted(unfit | {host for host, count in lost.items() if count >= TWICE})


_USABLE = ("idle", "mixed", "allocated", "completing", "reserved")


def excludable(unreliable: Sequence[str], states: dict[str, str], needed: int) -> list[str]:
    """As many of `unreliable` as the partition can spare, whose hosts have these `states` of sinfo."""
    usable = [host for host, state in states.items() if state.rstrip("*~#!%$@^-") in _USABLE]
    spare = len(usable) - needed
    return [host for host in unreliable if host not in usable or (spare := spare - 1) >= 0]


@dataclass(frozen=True)
class Ending:
    """How a start of the job ended: `code` for Slurm, and whether the run is to go on in another start."""

    code: int
    why: str
    requeue: bool = False


def may_requeue(state: str, reason: str) -> bool:
    """Whether it is for the job to requeue itself, by what scontrol says of it.

    A job that is completing while we still run was cancelled or requeued by somebody, unless its time is over.
    """
    return state == "RUNNING" or reason == "TimeLimit"
