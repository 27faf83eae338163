"""All that the records of a run tell about it, for people and for programs. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.run.events import Event
from cluster.run.run_events import AttemptStarted, Fault, Warned
from trainer.history.goodput import Account
from trainer.history.restarts import Restart, restarts
from trainer.history.verdict import Verdict, verdict
from trainer.history.wall_time_spans import Figures, timeline

__all__ = ["History", "read_history"]


@dataclass(frozen=True)
class History:
    """Where a run stands and how it came there."""

    verdict: Verdict
    attempts: int
    account: Account
    restarts: list[Restart]
    slowest: dict[str, Any]  # of the last logged interval: rank, host, ratio; empty for a single worker
    faults: list[Fault]
    warnings: list[Warned]

    def as_json(self) -> dict[str, Any]:
        """The shape that `stoker status --json` prints."""
        account = self.account
        return {
            "state": self.verdict.what,
            "verdict": {**asdict(self.verdict), "line": self.verdict.line()},
            "attempts": self.attempts,
            "goodput": account.fraction,
            "wall_s": account.wall_s,
            "seconds": account.seconds,
            "worker_goodput": account.worker_fraction,
            "worker_seconds": account.worker_seconds,
            "restarts": [{**asdict(restart), "total_s": restart.total_s} for restart in self.restarts],
            "slowest_rank": self.slowest,
            "faults": [fault.to_line() for fault in self.faults],
            "warnings": [warning.to_line() for warning in self.warnings],
        }


def read_history(
    events: Sequence[Event], committed: Sequence[Figures], superseded: Sequence[Figures], now: float, *, busy: bool
) -> History:
    """`committed` and `superseded`: lines of metrics. `busy`: a command holds the run's lock; its time runs on."""
    return History(
        verdict(events, running=busy),
        sum(isinstance(event, AttemptStarted) for event in events),
        Account.of(timeline(events, committed, superseded, now if busy else None)),
        restarts(events, [*committed, *superseded]),
        _slowest(events, committed),
        [event for event in events if isinstance(event, Fault)],
        [event for event in events if isinstance(event, Warned)],
    )


def _slowest(events: Sequence[Event], committed: Sequence[Figures]) -> dict[str, Any]:
    last = committed[-1] if committed else {}
    if "slowest_rank" not in last:
        return {}
    rank = last["slowest_rank"]
    started = (e for e in events if isinstance(e, AttemptStarted) and e.attempt == last["attempt"])
    hosts = next((event.hosts for event in started), [])
    host = hosts[rank] if rank < len(hosts) else None
    return {"rank": rank, "host": host, "ratio": last["slowest_rank_ratio"], "step": last["step"]}
