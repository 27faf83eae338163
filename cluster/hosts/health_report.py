"""What a host's health check is asked, what it found, and which hosts are worse than the others. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from cluster.hosts.host_fitness import HostHealth

__all__ = [
    "SLOW_FRACTION",
    "UNFIT_FRACTION",
    "CheckPlan",
    "HostReport",
    "pair_rounds",
    "report_lines",
    "slow_hosts",
    "unreachable_hosts",
]


GIB = 1 << 30
# Of the others' median. Measured beside a starting Ray, rates of equal hosts differ by less than two.
UNFIT_FRACTION = 0.25
SLOW_FRACTION = 0.5
_ENOUGH_TO_COMPARE = 3  # of two hosts on one link, nobody knows whose fault it is


@dataclass(frozen=True)
class CheckPlan:
    """One host's part in a check of `hosts`, in order of rank."""

    folder: str  # that all hosts share
    hosts: tuple[str, ...]
    rank: int
    address: str  # HOST:PORT that rank 0 opens and all others reach; unused by a host alone

    @property
    def host(self) -> str:
        """Name of the host that this plan is for."""
        return self.hosts[self.rank]

    def encode(self) -> str:
        """One word of a command line; `decode` takes it back."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "CheckPlan":
        """From what `encode` gave."""
        fields = json.loads(text)
        return cls(**{**fields, "hosts": tuple(fields["hosts"])})


@dataclass(frozen=True)
class HostReport:
    """What one host measured; rates are None or absent where the check did not get so far."""

    host: str
    health: HostHealth | None = None
    gpus: list[str] = field(default_factory=list)
    disk_bytes_per_s: float | None = None
    flops: dict[str, float] = field(default_factory=dict)  # of a product in fp32, by device
    links: dict[str, float] = field(default_factory=dict)  # bytes/s of an all-reduce with one other host
    broken: dict[str, str] = field(default_factory=dict)  # other host: why there was none
    all_reduce_bytes_per_s: float | None = None  # of all hosts together
    problems: list[str] = field(default_factory=list)  # of this host alone
    remarks: list[str] = field(default_factory=list)  # nobody's fault that this host could name

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "HostReport":
        """From what `as_dict` gave. Raises TypeError for fields of another version."""
        health = fields["health"] and HostHealth(**fields["health"])
        return cls(**{**fields, "health": health})


def report_lines(report: HostReport) -> Iterator[str]:
    """The report for people, a line for each kind of figure."""
    if report.health is not None:
        health = report.health
        sizes = (health.memory_bytes, health.shared_memory_bytes, health.temporary_bytes)
        memory, shared, temporary = (f"{size / GIB:.1f} GiB" for size in sizes)
        yield f"free memory {memory}, /dev/shm {shared}, temporary {temporary}"
        yield f"clock {health.clock_ahead_s:+.1f} s from that of the folder's server"
    if report.gpus:
        yield f"gpus {', '.join(report.gpus)}"
    if report.disk_bytes_per_s is not None:
        yield f"disk {report.disk_bytes_per_s / 1e6:,.0f} MB/s written and synced in the folder"
    for device, flops in report.flops.items():
        yield f"matrix product on {_title(device)} {flops / 1e9:,.0f} GFLOP/s in fp32"
    for other, rate in report.links.items():
        yield f"all-reduce with {other} {rate / 1e6:,.0f} MB/s"
    if report.all_reduce_bytes_per_s is not None:
        yield f"all-reduce of all hosts {report.all_reduce_bytes_per_s / 1e6:,.0f} MB/s"
    yield from report.remarks


def unreachable_hosts(reports: Sequence[HostReport]) -> dict[str, str]:
    """Hosts that none of their neighbours could add up with, while others could: host and why."""
    if not any(report.links for report in reports):
        return {}
    alone = [report for report in reports if report.broken and not report.links]
    return {r.host: f"no all-reduce with {', '.join(r.broken)}: {next(iter(r.broken.values()))}" for r in alone}


def slow_hosts(reports: Sequence[HostReport], fraction: float) -> dict[str, str]:
    """Hosts that multiply or send at less than `fraction` of the others' median: host and why."""
    found: dict[str, str] = {}
    for what, unit, rates in _rates(reports):
        for host, rate in rates.items():
            usual = median([other for name, other in rates.items() if name != host] or [0.0])
            if rate < fraction * usual:
                found.setdefault(host, f"{what} {rate / 1e6:,.0f} {unit}, the others' median is {usual / 1e6:,.0f}")
    return found


def _rates(reports: Sequence[HostReport]) -> Iterator[tuple[str, str, dict[str, float]]]:
    devices = sorted({device.partition(":")[0] for report in reports for device in report.flops})
    for kind in devices:  # a host is as slow as the slowest of its devices
        own = {r.host: [f for d, f in r.flops.items() if d.partition(":")[0] == kind] for r in reports}
        yield (
            f"a matrix product on {_title(kind)} runs at",
            "MFLOP/s",
            {h: min(flops) for h, flops in own.items() if flops},
        )
    if len(reports) >= _ENOUGH_TO_COMPARE:  # a good host has a slow link to a bad one, and a fast one to another
        yield "an all-reduce sends", "MB/s", {r.host: max(r.links.values()) for r in reports if r.links}


def _title(device: str) -> str:
    return "one cpu core" if device == "cpu" else device


def pair_rounds(hosts: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours in a ring of so many hosts, in rounds in which each host has one partner at most.

    Every host works out the same rounds, so that nobody has to say who is next. Two rounds, three for odd numbers.
    """
    if hosts < 2:
        return []
    if hosts == 2:
        return [[(0, 1)]]
    ring = [(rank, (rank + 1) % hosts) for rank in range(hosts)]
    even, odd = ring[: hosts - hosts % 2 : 2], ring[1::2]
    return [even, odd, ring[-1:]] if hosts % 2 else [even, odd]
