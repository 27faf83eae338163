"""A run that happens on paper: the records it would leave, and where its time really went."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

Event = dict[str, Any]
_LOG_EVERY, _SAVE_EVERY, _VALIDATE_EVERY, _STEPS = 3, 4, 5, 14
_TRAINING = ("step", "data_wait", "validation", "checkpoint")


class FaultError(Exception):
    """A worker has died."""


@dataclass
class Stretch:
    """True time of one kind; `step`: the one that it worked for."""

    start: float
    stop: float
    kind: str
    workers: int
    attempt: int = 0
    step: int = 0


@dataclass
class SimulatedRun:
    random: Random
    time: float = 1000.0
    events: list[Event] = field(default_factory=list)
    lines: list[Event] = field(default_factory=list)
    truth: list[Stretch] = field(default_factory=list)
    attempts: int = 0
    published: list[int] = field(default_factory=list)
    resumed: dict[int, int] = field(default_factory=dict)  # the step by attempt
    workers: int = 0
    invocation: int = 0

    def run(self) -> None:
        """Commands until one has finished, or three."""
        while self.invocation < 3 and not self.command():
            self.time += self.random.randint(0, 50)  # nobody runs it

    def command(self) -> bool:
        self.invocation += 1
        self.workers = 0
        if self.random.random() < 0.5:
            self.events.append({"event": "queued", "time": self.time, "job": 1})
            self.spend("queue")
            self.events.append({"event": "job_started", "time": self.time, "job": 1})
        began = self.time
        first = len(self.truth)
        self.spend("start")
        self.tell("command", started=began, workers="2..4")
        self.spend("start")
        for number in range(3):
            if self.attempt("start" if number == 0 else "down", first):
                self.spend("down")
                self.tell("finished", step=_STEPS)
                self.tell("command_ended", exit_code=0)
                return True
        if self.random.random() < 0.5:
            self.spend("down")
            self.tell("command_ended", exit_code=1)
        return False

    def attempt(self, before: str, first_of_command: int) -> bool:
        self.spend(before)
        if self.random.random() < 0.3:
            self.wait_for_room()
            self.spend(before)
        self.attempts += 1
        self.workers = self.random.randint(1, 4)
        if before == "start":  # the driver's time is counted at the width of its first workers
            for stretch in self.truth[first_of_command:]:
                stretch.workers = self.workers if stretch.kind != "queue" else 0
        self.tell("attempt_started", workers=self.workers, attempt=self.attempts)
        try:
            _Attempt(self).run()
        except FaultError:
            self.tell("fault", attempt=self.attempts)
            return False
        return True

    def wait_for_room(self) -> None:
        held, self.workers, since = self.workers, 0, self.time
        self.spend("queue")
        self.workers = held
        self.tell("waiting", since=since, room=1)
        self.tell("room", since=self.time, room=None)

    def spend(self, kind: str, **of: int) -> float:
        seconds = self.random.randint(0, 6)
        self.truth.append(Stretch(self.time, self.time + seconds, kind, self.workers, **of))
        self.time += seconds
        return seconds

    def tell(self, event: str, **details: Any) -> None:
        self.events.append({"event": event, "time": self.time, "invocation": self.invocation, **details})

    def kept_to(self, attempt: int) -> float:
        """The last step of an attempt that no later one trained again."""
        return min((step for later, step in self.resumed.items() if later > attempt), default=float("inf"))

    def metrics(self) -> tuple[list[Event], list[Event]]:
        """Committed and superseded lines."""
        kept = [line["step"] <= self.kept_to(line["attempt"]) for line in self.lines]
        committed = [line for line, keep in zip(self.lines, kept, strict=True) if keep]
        return committed, [line for line, keep in zip(self.lines, kept, strict=True) if not keep]


class _Attempt:
    def __init__(self, run: SimulatedRun) -> None:
        self.sim, self.number, self.first = run, run.attempts, len(run.truth)
        self.since_line = {"data_wait_s": 0.0, "checkpoint_s": 0.0, "validation_s": 0.0}
        self.unpublished: Event | None = None
        self.last_told, self.trained = run.time, False

    def run(self) -> None:
        sim = self.sim
        try:
            self._spend("start")
            step = self._restore()
            self._spend("start")
            began = sim.time
            for current in range(step + 1, _STEPS + 1):
                self._step(current, began)
            self._spend("checkpoint", _STEPS)
            self._tell("left", step=_STEPS, **self.since_line)
        except FaultError:
            self._lose()
            raise

    def _spend(self, kind: str, step: int = 0) -> float:
        seconds = self.sim.spend(kind, attempt=self.number, step=step)
        if f"{kind}_s" in self.since_line:
            self.since_line[f"{kind}_s"] += seconds
        if self.sim.random.random() < 0.03:
            raise FaultError
        return seconds

    def _tell(self, event: str, **details: Any) -> None:
        self.sim.tell(event, attempt=self.number, **details)

    def _restore(self) -> int:
        sim = self.sim
        if sim.published and sim.random.random() < 0.2:
            sim.published.pop()  # the newest is torn
        step = sim.published[-1] if sim.published else 0
        if step:
            before = len(sim.truth)
            try:
                seconds = self._spend("restore")
            except FaultError:
                sim.truth[before].kind = "start"  # nobody could tell
                raise
            self._resume(step)
            self._tell("resumed", step=step, seconds=seconds)
        return step

    def _resume(self, step: int) -> None:
        self.sim.resumed[self.number] = step
        for stretch in self.sim.truth:
            if stretch.attempt < self.number and stretch.step > step and stretch.kind in _TRAINING:
                stretch.kind = "lost"

    def _step(self, step: int, began: float) -> None:
        sim = self.sim
        self._spend("data_wait", step)
        self._spend("step", step)
        if not self.trained:
            self.trained = True
            self._resume(step - 1)
            self._tell("first_step", step=step, seconds=sim.time - began)
        self._publish()
        validates = step % _VALIDATE_EVERY == 0
        if validates:
            self._spend("validation", step)
        if validates or step % _LOG_EVERY == 0:
            sim.lines.append({"step": step, "time": sim.time, "attempt": self.number, **self.since_line})
            self.since_line = dict.fromkeys(self.since_line, 0.0)
            self.last_told = sim.time
        if step % _SAVE_EVERY == 0 and step < _STEPS:
            figures = {"saved_at": sim.time, "background": True, **self.since_line}
            copy_s = self._spend("checkpoint", step)
            self.unpublished = {"step": step, "wait_s": 0.0, "copy_s": copy_s, **figures}

    def _publish(self) -> None:
        if self.unpublished is not None:
            saved, self.unpublished = self.unpublished, None
            self.sim.published.append(saved["step"])
            self._tell("checkpoint", **saved)
            self.last_told = max(self.last_told, saved["saved_at"] + saved["copy_s"])

    def _lose(self) -> None:
        """What no line and no checkpoint tells of is lost; before the first step it was the start."""
        for stretch in self.sim.truth[self.first :]:
            if not self.trained:
                stretch.kind = "restore" if stretch.kind == "restore" else "start"
            elif stretch.start >= self.last_told and stretch.step:
                stretch.kind = "lost"
