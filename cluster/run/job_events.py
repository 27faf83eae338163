"""The events that a Slurm job's supervisor and the login node write into the ledger."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cluster.run.events import Event

__all__ = [
    "HostBack",
    "HostLost",
    "HostUnfit",
    "HostsChecked",
    "JobCancelled",
    "JobEnded",
    "JobRequeued",
    "JobStarted",
    "JobWarned",
    "Queued",
    "Submitted",
]


@dataclass(frozen=True, kw_only=True)
class Submitted(Event):
    """By `stoker submit`."""

    event: ClassVar[str] = "submitted"
    job: str
    nodes: int
    partition: str | None


@dataclass(frozen=True, kw_only=True)
class Queued(Event):
    """The job waits in Slurm's queue from now on."""

    event: ClassVar[str] = "queued"
    job: str


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """Slurm has given it `hosts`, the first of which is its head."""

    event: ClassVar[str] = "job_started"
    job: str
    restarts: int
    hosts: list[str]


@dataclass(frozen=True, kw_only=True)
class JobWarned(Event):
    """Slurm is about to end it."""

    event: ClassVar[str] = "warned"
    signal: str
    job: str


@dataclass(frozen=True, kw_only=True)
class JobRequeued(Event):
    """It goes back into the queue, to be started without the hosts `excluded`."""

    event: ClassVar[str] = "requeued"
    job: str
    reason: str
    excluded: list[str]


@dataclass(frozen=True, kw_only=True)
class JobEnded(Event):
    """For good, with exit code `code`."""

    event: ClassVar[str] = "job_ended"
    job: str
    code: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class JobCancelled(Event):
    """By `stoker cancel`."""

    event: ClassVar[str] = "cancelled"
    job: str


@dataclass(frozen=True, kw_only=True)
class HostLost(Event):
    """A host of a job does not answer, or did not join."""

    event: ClassVar[str] = "host_lost"
    host: str
    job: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class HostUnfit(Event):
    """A host of a job did not pass its health check."""

    event: ClassVar[str] = "host_unfit"
    host: str
    job: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class HostBack(Event):
    """A lost host answers again."""

    event: ClassVar[str] = "host_back"
    host: str
    job: str


@dataclass(frozen=True, kw_only=True)
class HostsChecked(Event):
    """What the health check measured, by host."""

    event: ClassVar[str] = "hosts_checked"
    job: str
    hosts: dict[str, Any]
    all_reduce_bytes_per_s: float | None
