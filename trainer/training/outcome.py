"""How an attempt ends when no process broke, and who may ask for it."""

import time
from dataclasses import dataclass
from enum import IntEnum

from cluster.run.run_events import AttemptEnded, Preempted, Resized, RolledBack, Stopped
from trainer.rank.context import Context


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: the same on every rank. `step` is the last one that was taken, or the bad one."""

    kind: type[AttemptEnded]  # of the event that the ledger gets
    step: int
    reason: str = ""

    @property
    def again(self) -> bool:
        """Whether the workers left only to be started again."""
        return issubclass(self.kind, Resized | Preempted | RolledBack)


class Leave(IntEnum):
    """Why the workers leave at a step boundary; rank 0 tells the others by this number."""

    STAY = 0
    SIGNAL = 1
    RESIZE = 2
    PREEMPTION = 3

    def outcome(self, step: int) -> Outcome:
        """Of an attempt that leaves after `step`."""
        match self:
            case Leave.RESIZE:
                return Outcome(Resized, step, "more workers fit")
            case Leave.PREEMPTION:
                return Outcome(Preempted, step, "a node is about to be taken away")
            case _:
                return Outcome(Stopped, step, "a signal")


class LeaveRequests:
    """What others ask of the workers while they train: a signal's file, and the supervisor's wish."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._resize_since: float | None = None

    def at(self, step: int) -> Leave:
        """At the boundary after `step`. On rank 0 only: a file may be seen by one rank a step earlier than by another.

        Were each to go by what it sees, one would leave and the others wait for it in the next all-reduce.
        """
        if not self._context.ranks.leads:
            return Leave.STAY
        if self._context.folder.stop_request.exists():
            return Leave.SIGNAL
        wish = self._context.activity.leave
        if wish == "preemption":
            return Leave.PREEMPTION
        if wish == "resize" and self._resize_is_due(step):
            return Leave.RESIZE
        return Leave.STAY

    def _resize_is_due(self, step: int) -> bool:
        """More workers are used from a checkpoint on, so that no step is done twice; or from one made for it."""
        recipe, now = self._context.recipe, time.monotonic()
        self._resize_since = now if self._resize_since is None else self._resize_since
        return step % recipe.checkpoint.every_steps == 0 or now - self._resize_since >= recipe.workers.grow_within_s
