"""The events that a command, its driver and its workers write into the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from cluster.run.events import SPREAD, Event, if_missing
from cluster.run.faults import FaultPlace, is_echo
from configs.errors import EXIT_FAILED, BadStepError, StokerError
from configs.reading.user_code import blamed_line

__all__ = [
    "AttemptEnded",
    "AttemptEvent",
    "AttemptStarted",
    "BadNumberFound",
    "ChaosStruck",
    "CheckpointPublished",
    "CheckpointSkipped",
    "CommandEnded",
    "CommandStarted",
    "DataFault",
    "FailureNotCounted",
    "Fault",
    "Finished",
    "FirstStep",
    "Initialised",
    "Left",
    "Preempted",
    "Resized",
    "Resumed",
    "RolledBack",
    "RoomFound",
    "SampleSkipped",
    "StepSkipped",
    "Stopped",
    "Validated",
    "Waiting",
    "Warned",
]


@dataclass(frozen=True, kw_only=True)
class CommandStarted(Event):
    """`started`: when its process began; `workers`: workers.count of the recipe, such as 4 or "2..4"."""

    event: ClassVar[str] = "command"
    started: float | None = None
    invocation: str | None
    workers: int | str = if_missing(1)


@dataclass(frozen=True, kw_only=True)
class CommandEnded(Event):
    """`failure`: what its launcher says, where that is not in the ledger."""

    event: ClassVar[str] = "command_ended"
    invocation: str
    failure: str | None = None
    exit_code: int = if_missing(EXIT_FAILED)


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """There is room for `room` workers only, which is too few, since `since`."""

    event: ClassVar[str] = "waiting"
    invocation: str
    since: float
    room: int | None


@dataclass(frozen=True, kw_only=True)
class RoomFound(Event):
    """The wait since `since` is over; `room` is null."""

    event: ClassVar[str] = "room"
    invocation: str
    since: float
    room: int | None


@dataclass(frozen=True, kw_only=True)
class FailureNotCounted(Event):
    """A failure that came with lost hosts, and so costs no workers.max_failures."""

    event: ClassVar[str] = "failure_not_counted"
    hosts: list[str]
    in_a_row: int
    invocation: str


@dataclass(frozen=True, kw_only=True)
class ChaosStruck(Event):
    """A fault of `--chaos` is about to strike."""

    event: ClassVar[str] = "chaos"
    fault: str
    phase: str
    rank: int
    invocation: str


@dataclass(frozen=True, kw_only=True)
class AttemptEvent(Event):
    """Of one attempt of one command."""

    attempt: int | None = None
    invocation: str | None = None


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(AttemptEvent):
    """`hosts`, `pids`: by rank; `host`, `pid`: rank 0's, whose process began at `process_started`."""

    event: ClassVar[str] = "attempt_started"
    workers: int
    host: str
    pid: int
    hosts: list[str]
    pids: list[int]
    since_command_s: float
    process_started: float | None = None


@dataclass(frozen=True, kw_only=True)
class Initialised(AttemptEvent):
    """Weights of `model.init_from` were read; `sha256`: by file."""

    event: ClassVar[str] = "initialised"
    path: str
    sha256: dict[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Resumed(AttemptEvent):
    """The checkpoint of `step` is restored, which took `seconds`."""

    event: ClassVar[str] = "resumed"
    step: int
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class FirstStep(AttemptEvent):
    """The attempt's first step is taken, `seconds` after its loop began."""

    event: ClassVar[str] = "first_step"
    step: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepSkipped(AttemptEvent):
    """The gradients overflowed fp16: no update was made, and the loss scale is lower."""

    event: ClassVar[str] = "step_skipped"
    step: int
    loss_scale: float


@dataclass(frozen=True, kw_only=True)
class SampleSkipped(AttemptEvent):
    """A sample that cannot be used was left out; `step` 0: from the start and for good."""

    event: ClassVar[str] = "sample_skipped"
    step: int
    split: str
    rank: int
    shard: str
    key: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class BadNumberFound(AttemptEvent):
    """A loss, gradient or state that is bad. `left_out`: the step makes no update, in this and any later attempt."""

    event: ClassVar[str] = "bad_number"
    step: int
    cause: str
    value: float | str
    limit: float | None
    message: str
    policy: str
    left_out: bool
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class Validated(AttemptEvent):
    """`figures`: such as val_loss; `sample`: what the model wrote, where that was asked for."""

    event: ClassVar[str] = "validated"
    step: int
    sample: str | None
    figures: dict[str, float] = field(default_factory=dict, metadata=SPREAD)


@dataclass(frozen=True, kw_only=True)
class CheckpointPublished(AttemptEvent):
    """The checkpoint of `step` is whole and visible.

    `seconds`: from the copy to here; `wait_s`, `copy_s`: what it kept training waiting; `saved_at`: when the save
    began, and `NAME_s`: where the time since the last logged line had gone by then.
    """

    event: ClassVar[str] = "checkpoint"
    step: int
    seconds: float
    bytes: int
    wait_s: float
    copy_s: float
    saved_at: float | None = None
    background: bool
    data_wait_s: float
    checkpoint_s: float
    validation_s: float


@dataclass(frozen=True, kw_only=True)
class CheckpointSkipped(AttemptEvent):
    """The one before was still being written, and checkpoint.when_busy is skip."""

    event: ClassVar[str] = "checkpoint_skipped"
    step: int


@dataclass(frozen=True, kw_only=True)
class Warned(AttemptEvent):
    """`details`: what programs may want to know of it."""

    event: ClassVar[str] = "warning"
    message: str
    details: dict[str, Any] = field(default_factory=dict, metadata=SPREAD)


@dataclass(frozen=True, kw_only=True)
class Left(AttemptEvent):
    """The last checkpoint is published and the workers leave; `NAME_s`: as at a checkpoint."""

    event: ClassVar[str] = "left"
    step: int
    data_wait_s: float
    checkpoint_s: float
    validation_s: float

    @classmethod
    def of(cls, step: int, seconds: Mapping[str, float]) -> "Left":
        """`seconds`: by `NAME_s`."""
        waits = (seconds[name] for name in ("data_wait_s", "checkpoint_s", "validation_s"))
        data_wait_s, checkpoint_s, validation_s = waits
        return cls(step=step, data_wait_s=data_wait_s, checkpoint_s=checkpoint_s, validation_s=validation_s)


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(AttemptEvent):
    """The workers left together after `step`."""

    step: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Finished(AttemptEnded):
    """The run is trained to its end."""

    event: ClassVar[str] = "finished"


@dataclass(frozen=True, kw_only=True)
class Stopped(AttemptEnded):
    """Somebody asked for it."""

    event: ClassVar[str] = "stopped"


@dataclass(frozen=True, kw_only=True)
class RolledBack(AttemptEnded):
    """A bad number: the next attempt goes on from the newest checkpoint without that step."""

    event: ClassVar[str] = "rolled_back"


@dataclass(frozen=True, kw_only=True)
class Resized(AttemptEnded):
    """The next attempt has another number of workers."""

    event: ClassVar[str] = "resized"


@dataclass(frozen=True, kw_only=True)
class Preempted(AttemptEnded):
    """A host is about to be taken away."""

    event: ClassVar[str] = "preempted"


@dataclass(frozen=True, kw_only=True)
class DataFault(AttemptEnded):
    """A shard or sample cannot be used: the workers left with a checkpoint of what was trained before."""

    event: ClassVar[str] = "data_fault"


@dataclass(frozen=True, kw_only=True)
class Fault(AttemptEvent):
    """What broke an attempt, and where.

    `final`: no restart can mend it; `echo`: it only follows from another rank that is lost.
    """

    event: ClassVar[str] = "fault"
    kind: str
    message: str
    rank: int | None
    host: str | None = None
    pid: int | None = None
    step: int | None = None
    phase: str | None = None
    final: bool
    echo: bool | None = None
    exit_code: int = if_missing(EXIT_FAILED)
    log: str

    @classmethod
    def of(cls, error: BaseException, place: FaultPlace) -> "Fault":
        """From the process that has the error. One of Stoker's own is final: it would only come again."""
        own = isinstance(error, StokerError)
        code = error.exit_code if isinstance(error, StokerError) else EXIT_FAILED
        kind, echo, line = type(error).__name__, not own and is_echo(error), blamed_line(error)
        message = str(error) if own or line is None else f"{error} ({line})"
        if isinstance(error, BadStepError):
            place = replace(place, step=error.step)
        return cls(kind=kind, message=message, final=own, echo=echo, exit_code=code, **place.fields())

    @classmethod
    def seen(cls, kind: str, message: str, place: FaultPlace) -> "Fault":
        """From beside a process that cannot tell itself: it died, or hangs, or Ray did. Another start may mend it."""
        return cls(kind=kind, message=message, final=False, exit_code=EXIT_FAILED, **place.fields())
