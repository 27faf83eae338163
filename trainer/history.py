"""A run's state and goodput, computed from its ledger and metrics. Pure."""

from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
_ENDS = ("finished", "stopped", "data_fault")


@dataclass(frozen=True)
class History:
    """What the ledger tells of a run."""

    state: str  # running, finished, stopped, failed, not started
    attempts: int
    faults: list[Event]
    warnings: list[Event]
    checkpoint_step: int
    goodput: float | None


def read_history(events: list[Event], metrics: list[Event], now: float, *, busy: bool) -> History:
    """`busy`: a process holds the run's lock, so time runs on until `now`."""
    attempts = [event for event in events if event["event"] == "attempt_started"]
    state = "running" if busy else _last_state(events)
    checkpoints = [event["step"] for event in events if event["event"] == "checkpoint"]
    return History(
        state,
        len(attempts),
        [event for event in events if event["event"] == "fault"],
        [event for event in events if event["event"] == "warning"],
        max(checkpoints, default=0),
        goodput(events, metrics, now if busy else None),
    )


def _last_state(events: list[Event]) -> str:
    if not events:
        return "not started"
    ended = [event for event in events if event["event"] in (*_ENDS, "attempt_started", "command")]
    last = ended[-1]["event"] if ended else "not started"
    if last in ("finished", "stopped"):
        return str(last)
    return "failed"


def goodput(events: list[Event], metrics: list[Event], now: float | None) -> float | None:
    """Seconds of committed optimizer steps per second of wall time of all commands; None before the first figure.

    Time between two commands, when nothing ran, does not count. `now` ends the last command if it still runs.
    """
    wall_s = 0.0
    times = [event["time"] for event in events]
    starts = [index for index, event in enumerate(events) if event["event"] == "command"]
    for start, stop in zip(starts, [*starts[1:], len(events)], strict=True):
        end = now if now is not None and stop == len(events) else times[stop - 1]
        wall_s += end - times[start]
    productive_s, previous = 0.0, 0
    for line in metrics:
        productive_s += line["step_s"] * (line["step"] - previous)
        previous = line["step"]
    return min(1.0, productive_s / wall_s) if wall_s > 0 and metrics else None
