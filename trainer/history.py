"""A run's state and goodput, computed from its ledger and metrics. Pure."""

from dataclasses import dataclass
from typing import Any

from trainer.goodput import Goodput

Event = dict[str, Any]
_ENDS = ("finished", "stopped", "data_fault")


@dataclass(frozen=True)
class History:
    """What the ledger tells of a run."""

    state: str  # running, finished, stopped, failed, not started
    attempts: int
    faults: list[Event]
    warnings: list[Event]
    goodput: float | None


def read_history(events: list[Event], metrics: list[Event], now: float, *, busy: bool) -> History:
    """`busy`: a process holds the run's lock, so time runs on until `now`."""
    attempts = [event for event in events if event["event"] == "attempt_started"]
    state = "running" if busy else _last_state(events)
    return History(
        state,
        len(attempts),
        [event for event in events if event["event"] == "fault"],
        [event for event in events if event["event"] == "warning"],
        Goodput.so_far(events, metrics).fraction(now if busy else events[-1]["time"]) if metrics and events else None,
    )


def _last_state(events: list[Event]) -> str:
    if not events:
        return "not started"
    ended = [event for event in events if event["event"] in (*_ENDS, "attempt_started", "command")]
    last = ended[-1]["event"] if ended else "not started"
    if last in ("finished", "stopped"):
        return str(last)
    return "failed"
