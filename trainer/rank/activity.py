"""What this worker is doing right now: for the hang rule, and for the record should it fail."""

from collections.abc import Callable
from typing import Protocol

from trainer.rank.fault_injection import no_chaos

__all__ = ["Activity"]


class SupervisorConnection(Protocol):
    """The line to whoever supervises this process (ShellConnection of cluster/forks/child_end.py)."""

    leave: str | None

    def report_position(self, phase: str, step: int | None = None) -> None:
        """The main thread has come to `phase` of the step after `step`."""

    def report(self, **facts: object) -> None:
        """Facts about this process that its supervisor should know."""


class Activity:
    """Called at each small piece of work; without a supervisor (tests, torchrun) it only remembers."""

    def __init__(
        self, supervisor: SupervisorConnection | None = None, chaos: Callable[[str, int], None] = no_chaos
    ) -> None:
        self._supervisor, self._chaos = supervisor, chaos
        self.phase, self.step = "starting", 0

    def __call__(self, phase: str, step: int | None = None) -> None:
        """The main thread has come to `phase` of the step after `step`, which is done."""
        self.phase = phase
        if step is not None:
            self.step = step
        if self._supervisor is not None:
            self._supervisor.report_position(phase, step)
        self._chaos(phase, self.step)

    def report(self, **facts: object) -> None:
        """Facts about this worker that its supervisor should know, such as the attempt."""
        if self._supervisor is not None:
            self._supervisor.report(**facts)

    @property
    def leave(self) -> str | None:
        """Why the supervisor wants the workers to leave at a step boundary, if it does."""
        return None if self._supervisor is None else self._supervisor.leave
