"""A run's state and goodput, computed from its ledger and metrics. Pure."""

from dataclasses import dataclass
from typing import Any

from trainer.goodput import Goodput

Event = dict[str, Any]


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
    milestones = ("command", "attempt_started", "data_fault", "finished", "stopped")
    last = next((event["event"] for event in reversed(events) if event["event"] in milestones), "not started")
    return str(last) if last in ("finished", "stopped", "not started") else "failed"
