"""What this worker is doing right now: for the watch beside it, and for the record should it fail."""

from collections.abc import Callable
from typing import Protocol

from trainer.rank.fault_injection import no_chaos

__all__ = ["Pulse"]


class Link(Protocol):
    """The line to whoever supervises this process (cluster/forks/child_end.py)."""

    leave: str | None

    def pulse(self, phase: str, step: int | None = None) -> None: ...

    def report(self, **facts: object) -> None: ...


class Pulse:
    """Called at each small piece of work; without a link (tests, torchrun) it only remembers."""

    def __init__(self, link: Link | None = None, chaos: Callable[[str, int], None] = no_chaos) -> None:
        self._link, self._chaos = link, chaos
        self.phase, self.step = "starting", 0

    def __call__(self, phase: str, step: int | None = None) -> None:
        """The main thread has come to `phase` of the step after `step`, which is done."""
        self.phase = phase
        if step is not None:
            self.step = step
        if self._link is not None:
            self._link.pulse(phase, step)
        self._chaos(phase, self.step)

    def tell(self, **facts: object) -> None:
        """Facts about this worker that its supervisor should know, such as the attempt."""
        if self._link is not None:
            self._link.report(**facts)

    @property
    def leave(self) -> str | None:
        """Why the supervisor wants the workers to leave at a step boundary, if it does."""
        return None if self._link is None else self._link.leave
