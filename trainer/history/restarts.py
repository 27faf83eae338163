"""What each restart cost, from the fault to the first step that had not been trained before. Pure."""

from dataclasses import dataclass
from typing import Any

from trainer.history.verdict import is_echo

Event = dict[str, Any]
_LEAVING = {"rolled_back": "going back", "resized": "resizing", "preempted": "a preemption"}  # by event


@dataclass(frozen=True)
class Restart:
    """One attempt that followed a broken one within the same command. None: not known, or not come so far."""

    attempt: int
    fault: str  # kind and rank, or why the workers left
    step: int | None  # the newest step that the broken attempt is known to have reached
    resumed_step: int | None
    down_s: float | None  # from the fault, as it was noticed, to the new process of rank 0
    join_s: float | None  # until all workers are there: the new attempt
    start_s: float | None  # until the state is being read
    restore_s: float | None
    first_step_s: float | None  # from the restored state to the end of the first step
    replay_s: float | None  # from there until the step of the fault was reached again

    @property
    def total_s(self) -> float | None:
        """From the fault to the end of the first step."""
        parts = (self.down_s, self.join_s, self.start_s, self.restore_s, self.first_step_s)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def line(self) -> str:
        """For `stoker status`."""
        names = ("down", "join", "start", "restore", "first_step", "replay")
        known = {name: seconds for name in names if (seconds := getattr(self, f"{name}_s")) is not None}
        parts = [f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in known.items()]
        total = f"{self.total_s:.1f} s to the first step: " if self.total_s is not None else ""
        at = f" at step {self.step}" if self.step is not None else ""
        to = f", resumed from step {self.resumed_step}" if self.resumed_step is not None else ""
        return f"attempt {self.attempt} after {self.fault}{at}{to}: {total}{', '.join(parts) or 'starting'}"


def restarts(events: list[Event], lines: list[Event]) -> list[Restart]:
    """Of the whole history; `lines`: committed and superseded lines of metrics."""
    found: list[Restart] = []
    before: int | None = None
    for event in events:
        if event["event"] == "command":
            before = None
        elif event["event"] == "attempt_started":
            if before is not None:
                found.append(_restart(before, event, events, lines))
            before = event["attempt"]
    return found


def _restart(before: int, started: Event, events: list[Event], lines: list[Event]) -> Restart:
    attempt = started["attempt"]
    broken = [event for event in events if event.get("attempt") == before]
    faults = sorted((event for event in broken if event["event"] == "fault"), key=lambda event: event["time"])
    left = next((event for event in broken if event["event"] in _LEAVING), None)
    after = {event["event"]: event for event in reversed(events) if event.get("attempt") == attempt}
    resumed, first = after.get("resumed"), after.get("first_step")
    reached = _reached(before, broken, lines)
    ready = resumed["time"] if resumed else (first["time"] - first["seconds"] if first else None)
    process = started.get("process_started", started["time"])
    reading = resumed["time"] - resumed["seconds"] if resumed else ready
    return Restart(
        attempt,
        _cause(faults, left),
        reached,
        resumed["step"] if resumed else (first["step"] - 1 if first else None),
        _between((faults[0] if faults else left or {}).get("time"), process),
        _between(process, started["time"]),
        _between(started["time"], reading),
        resumed["seconds"] if resumed else (0.0 if first else None),
        _between(ready, first["time"] if first else None),
        _between(first["time"] if first else None, _time_of(reached, attempt, lines)),
    )


def _cause(faults: list[Event], left: Event | None) -> str:
    if faults:
        first = min(faults, key=is_echo)  # another rank may have told of its lost connection before
        return f"{first.get('kind', 'a fault')} on rank {first.get('rank', '?')}"
    return f"{_LEAVING[left['event']]} ({left['reason']})" if left else "an untold fault"


def _reached(attempt: int, events: list[Event], lines: list[Event]) -> int | None:
    steps = [line["step"] for line in lines if line["attempt"] == attempt]
    steps += [event["step"] for event in events if isinstance(event.get("step"), int)]
    return max(steps, default=None)


def _time_of(step: int | None, attempt: int, lines: list[Event]) -> float | None:
    """When an attempt had taken `step`, to the next logged line."""
    if step is None:
        return None
    return min((line["time"] for line in lines if line["attempt"] == attempt and line["step"] >= step), default=None)


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else max(0.0, stop - start)
