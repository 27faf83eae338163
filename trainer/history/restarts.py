"""What each restart cost, from the fault to the first step that had not been trained before. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.run.events import Event, attempt_of, step_of
from cluster.run.run_events import (
    AttemptEnded,
    AttemptStarted,
    CommandStarted,
    Fault,
    FirstStep,
    Preempted,
    Resized,
    Resumed,
    RolledBack,
)
from trainer.history.wall_time_spans import Figures

_LEAVING: dict[type[Event], str] = {RolledBack: "going back", Resized: "resizing", Preempted: "a preemption"}


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


def restarts(events: Sequence[Event], lines: Sequence[Figures]) -> list[Restart]:
    """Of the whole history; `lines`: committed and superseded lines of metrics."""
    found: list[Restart] = []
    before: int | None = None
    for event in events:
        if isinstance(event, CommandStarted):
            before = None
        elif isinstance(event, AttemptStarted):
            if before is not None:
                found.append(_restart(before, event, events, lines))
            before = event.attempt
    return found


def _restart(before: int, started: AttemptStarted, events: Sequence[Event], lines: Sequence[Figures]) -> Restart:
    attempt = started.attempt or 0
    broken, own = ([event for event in events if attempt_of(event) == each] for each in (before, attempt))
    faults = sorted((event for event in broken if isinstance(event, Fault)), key=lambda fault: fault.time)
    left = next((event for event in broken if isinstance(event, AttemptEnded) and type(event) in _LEAVING), None)
    resumed = next((event for event in own if isinstance(event, Resumed)), None)
    first = next((event for event in own if isinstance(event, FirstStep)), None)
    reached = _reached(before, broken, lines)
    ready = resumed.time if resumed else (first.time - first.seconds if first else None)
    process = started.time if started.process_started is None else started.process_started
    reading = resumed.time - resumed.seconds if resumed else ready
    noticed = faults[0].time if faults else left.time if left else None
    return Restart(
        attempt,
        _cause(faults, left),
        reached,
        resumed.step if resumed else (first.step - 1 if first else None),
        _between(noticed, process),
        _between(process, started.time),
        _between(started.time, reading),
        resumed.seconds if resumed else (0.0 if first else None),
        _between(ready, first.time if first else None),
        _between(first.time if first else None, _time_of(reached, attempt, lines)),
    )


def _cause(faults: list[Fault], left: AttemptEnded | None) -> str:
    if faults:
        # Another rank may have told of its lost connection before.
        first = min(faults, key=lambda fault: bool(fault.echo))
        return f"{first.kind or 'a fault'} on rank {'?' if first.rank is None else first.rank}"
    return f"{_LEAVING[type(left)]} ({left.reason})" if left else "an untold fault"


def _reached(attempt: int, events: Sequence[Event], lines: Sequence[Figures]) -> int | None:
    steps = [line["step"] for line in lines if line["attempt"] == attempt]
    steps += [step for event in events if (step := step_of(event)) is not None]
    return max(steps, default=None)


def _time_of(step: int | None, attempt: int, lines: Sequence[Figures]) -> float | None:
    """When an attempt had taken `step`, to the next logged line."""
    if step is None:
        return None
    return min((line["time"] for line in lines if line["attempt"] == attempt and line["step"] >= step), default=None)


def _between(start: float | None, stop: float | None) -> float | None:
    return None if start is None or stop is None else max(0.0, stop - start)
