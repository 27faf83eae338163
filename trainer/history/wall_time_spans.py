"""Where every second of a run went: its history cut into spans, each of one class. Pure.

The spans of a command lie end to end from its start to its end, so that the classes add up to the wall time whatever
the history holds. Clocks of several hosts may disagree: a time that lies before the one reached counts as that one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, get_args

from cluster.run.events import Event, attempt_of, invocation_of
from cluster.run.job_events import JobStarted, Queued
from cluster.run.run_events import (
    AttemptStarted,
    CheckpointPublished,
    CommandStarted,
    Fault,
    FirstStep,
    Left,
    Resumed,
    RoomFound,
    Waiting,
)

__all__ = ["PHASES"]


Figures = Mapping[str, Any]  # of one line of metrics.jsonl
SpanClass = Literal["queue", "start", "restore", "step", "data_wait", "checkpoint", "validation", "lost", "down"]
CLASSES: tuple[SpanClass, ...] = get_args(SpanClass)
PHASES: tuple[SpanClass, ...] = ("data_wait", "checkpoint", "validation")  # as `NAME_s` in lines and marks


@dataclass(frozen=True)
class Span:
    """A stretch of wall time."""

    start: float
    stop: float
    kind: SpanClass
    workers: int  # that held their cpus and devices meanwhile

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.stop - self.start


def timeline(
    events: Sequence[Event], committed: Sequence[Figures], superseded: Sequence[Figures], now: float | None = None
) -> list[Span]:
    """All spans, oldest first. `committed`, `superseded`: lines of metrics. `now`: the last command still runs."""
    spans: list[Span] = []
    commands = _commands(events)
    history = _History(events, committed, superseded)
    for command in commands:
        running = now if command is commands[-1] else None
        spans += _command_spans(command, history, spans[-1].stop if spans else 0.0, running)
    return spans


@dataclass
class _Command:
    """One `stoker train`, and what it and its workers told; `queued`, `granted`: its place in a queue before."""

    event: Event
    queued: float | None = None
    granted: float | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def start(self) -> float:
        started = self.event.started if isinstance(self.event, CommandStarted) else None
        return self.event.time if started is None else started

    @property
    def workers(self) -> int:
        """Before the first attempt."""
        if started := next((event for event in self.events if isinstance(event, AttemptStarted)), None):
            return started.workers
        wanted = self.event.workers if isinstance(self.event, CommandStarted) else 1
        return int(str(wanted).partition("..")[0] or 1)  # 4 or "2..4"


def _commands(events: Sequence[Event]) -> list[_Command]:
    """Events of the world outside, such as Slurm's, belong to no command: they have no `invocation`."""
    commands: list[_Command] = []
    queued: float | None = None
    granted: float | None = None
    for event in events:
        ours = invocation_of(event) is not None or attempt_of(event) is not None
        if isinstance(event, Queued):
            queued, granted = (event.time if queued is None else queued), None
        elif isinstance(event, JobStarted):
            granted = event.time
        elif isinstance(event, CommandStarted) or (ours and not commands):
            commands.append(_Command(event, queued, granted))
            queued = granted = None
        if commands and ours and invocation_of(event) == invocation_of(commands[-1].event):
            commands[-1].events.append(event)
    return commands


@dataclass
class _Mark:
    """A point of an attempt whose seconds are known: a logged line, the start of a save, the end of the training."""

    step: int
    time: float
    figures: Figures  # seconds since the last logged line, by `NAME_s`
    line: bool
    kept: bool  # the steps up to here belong to the committed history
    stall_until: float = 0.0  # of a save


class _History:
    """The marks of each attempt, and which of them are committed."""

    def __init__(self, events: Sequence[Event], committed: Sequence[Figures], superseded: Sequence[Figures]) -> None:
        self.of_attempt: dict[int, list[Event]] = {}
        for event in events:
            self.of_attempt.setdefault(attempt_of(event) or 0, []).append(event)
        self._lines: dict[int, list[_Mark]] = {}
        for lines, kept in ((committed, True), (superseded, False)):
            for line in lines:
                self._lines.setdefault(line["attempt"], []).append(_line_mark(line, kept))
        self._resumed = {a: step for a, found in self.of_attempt.items() if (step := _resumed_step(found)) is not None}

    def marks(self, attempt: int) -> list[_Mark]:
        """In order of time."""
        kept_to = min((step for later, step in self._resumed.items() if later > attempt), default=None)
        marks = list(self._lines.get(attempt, []))
        for event in self.of_attempt.get(attempt, []):
            if isinstance(event, Left | CheckpointPublished) and (mark := _event_mark(event, kept_to)):
                marks.append(mark)
        return sorted(marks, key=lambda mark: (mark.time, mark.step))


def _resumed_step(events: list[Event]) -> int | None:
    """The step after which an attempt trained; None when it did not come so far."""
    for event in events:
        if isinstance(event, Resumed):
            return event.step
        if isinstance(event, FirstStep):
            return event.step - 1
    return None


def _line_mark(line: Figures, kept: bool) -> _Mark:
    return _Mark(line["step"], line["time"], line, line=True, kept=kept)


def _event_mark(event: Left | CheckpointPublished, kept_to: int | None) -> _Mark | None:
    """None for a checkpoint of a version that did not tell when its save began."""
    kept, figures = kept_to is None or event.step <= kept_to, event.to_line()
    if isinstance(event, Left):
        return _Mark(event.step, event.time, figures, line=False, kept=kept)
    if event.saved_at is None:
        return None
    until = event.saved_at + event.wait_s + event.copy_s if event.background else event.time
    return _Mark(event.step, event.saved_at, figures, line=False, kept=kept, stall_until=until)


class _Cursor:
    """Lays spans end to end."""

    def __init__(self, time: float, workers: int) -> None:
        self.time, self.workers = time, workers
        self.spans: list[Span] = []

    def advance(self, until: float, kind: SpanClass) -> None:
        """Up to `until`, unless that is past already."""
        if until > self.time:
            self.spans.append(Span(self.time, until, kind, self.workers))
            self.time = until

    def share(self, until: float, parts: dict[SpanClass, float], rest: SpanClass) -> None:
        """Up to `until`: the parts and the rest."""
        for kind, seconds in fitted(parts, until - self.time).items():
            self.advance(min(until, self.time + seconds), kind)
        self.advance(until, rest)


def fitted(parts: Mapping[SpanClass, float], room_s: float) -> dict[SpanClass, float]:
    """The parts, scaled down should they be longer than the room: several ranks may have waited at once."""
    wanted = sum(parts.values())
    scale = min(1.0, max(room_s, 0.0) / wanted) if wanted > 0 else 0.0
    return {kind: seconds * scale for kind, seconds in parts.items()}


def _command_spans(command: _Command, history: _History, before: float, now: float | None) -> list[Span]:
    cursor = _Cursor(max(before, command.start), command.workers)
    if command.queued is not None and command.queued < cursor.time:
        cursor.time, cursor.workers = max(before, command.queued), 0  # nothing is held while waiting
        cursor.advance(command.start if command.granted is None else command.granted, "queue")
        cursor.workers = command.workers
    starts = [event for event in command.events if isinstance(event, AttemptStarted)]
    for start, later in zip_longest(starts, starts[1:]):
        _until_start(cursor, command, start.time, "start" if start is starts[0] else "down")
        cursor.workers = start.workers
        if later is None:
            _attempt_spans(cursor, history, start.attempt or 0, now)
        else:  # the cause may be told after the next one has begun
            _attempt_spans(cursor, history, start.attempt or 0, None, later.time)
    told = [event.time for event in command.events]
    _until_start(cursor, command, now if now is not None else max(told, default=0.0), "down" if starts else "start")
    return cursor.spans


def _until_start(cursor: _Cursor, command: _Command, until: float, kind: SpanClass) -> None:
    """Without workers: in a queue while there is no room for them, else of `kind`."""
    begun: float | None = None
    for event in command.events:
        if isinstance(event, Waiting) and begun is None:
            begun = event.since
        elif isinstance(event, RoomFound | AttemptStarted) and begun is not None:  # or Ray broke meanwhile
            _wait(cursor, begun, min(event.time, until), kind)
            begun = None
    if begun is not None and begun < until:
        _wait(cursor, begun, until, kind)
    cursor.advance(until, kind)


def _wait(cursor: _Cursor, begun: float, until: float, kind: SpanClass) -> None:
    if begun >= until or until <= cursor.time:
        return
    cursor.advance(begun, kind)
    workers, cursor.workers = cursor.workers, 0  # no worker runs meanwhile
    cursor.advance(until, "queue")
    cursor.workers = workers


def _attempt_spans(cursor: _Cursor, history: _History, attempt: int, now: float | None, most: float = math.inf) -> None:
    events, marks = history.of_attempt[attempt], history.marks(attempt)
    trained = False
    for event in events:
        if isinstance(event, Resumed):
            cursor.advance(event.time - event.seconds, "start")
            cursor.advance(event.time, "restore")
        elif isinstance(event, FirstStep):
            cursor.advance(event.time - event.seconds, "start")
            trained = True
    _pieces(cursor, marks)
    if any(isinstance(event, Left) for event in events):
        return
    if now is not None and not any(isinstance(event, Fault) for event in events):
        cursor.advance(now, "step" if trained else "start")  # until a line tells more
    else:
        cursor.advance(min(_end(events, marks), most), "lost" if trained else "start")


def _pieces(cursor: _Cursor, marks: list[_Mark]) -> None:
    """The spans up to the last mark."""
    told: dict[str, float] = {}
    for mark in marks:
        parts = _since(mark.figures, told)
        if mark.kept:
            cursor.share(mark.time, parts, "step")
        else:
            cursor.advance(mark.time, "lost")
        told = {} if mark.line else {f"{name}_s": mark.figures.get(f"{name}_s", 0.0) for name in PHASES}
        if mark.kept and mark.stall_until > cursor.time:
            told["checkpoint_s"] = told.get("checkpoint_s", 0.0) + mark.stall_until - cursor.time
            cursor.advance(mark.stall_until, "checkpoint")


def _since(figures: Figures, told: dict[str, float]) -> dict[SpanClass, float]:
    return {name: max(0.0, figures.get(f"{name}_s", 0.0) - told.get(f"{name}_s", 0.0)) for name in PHASES}


def _end(events: list[Event], marks: Iterable[_Mark]) -> float:
    """When an attempt that did not leave by itself ended: at its first fault, or its last sign of life."""
    faults = [event.time for event in events if isinstance(event, Fault)]
    signs = [*(event.time for event in events), *(mark.time for mark in marks)]
    return float(min(faults) if faults else max(signs, default=0.0))
