"""This worker in this attempt."""

import socket
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger
from cluster.run.run_events import AttemptEvent, AttemptStarted, Fault, Warned
from cluster.run.run_folder import RunFolder
from configs.errors import RunFolderError
from configs.recipe import Recipe
from trainer.rank.activity import Activity
from trainer.rank.ranks import Ranks

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """Passed to whatever writes into the run folder."""

    recipe: Recipe
    folder: RunFolder
    ledger: Ledger
    ranks: Ranks
    attempt: int
    invocation: str  # of `stoker train`: several attempts belong to one
    activity: Activity = field(default_factory=Activity)

    def record(self, event: AttemptEvent) -> None:
        """Append to the ledger, from this rank, as an event of this attempt.

        A full disk must not end the training: this rank's log is the next best place.
        """
        self.ledger.try_append(self._own(event), lambda line: print(line, file=sys.stderr))  # noqa: T201

    def claim(self, event: AttemptStarted) -> None:
        """Record that this attempt begins. Raises RunFolderError when that cannot be written.

        Older attempts go by it, so an attempt that cannot say that it is there may not begin.
        """
        try:
            self.ledger.append(self._own(event))
        except OSError as error:
            raise RunFolderError(
                f"{self.folder.ledger} cannot be written ({error.strerror}), so attempt {self.attempt} cannot begin: "
                "free some space or make it writable, then run the same command again"
            ) from error

    def _own(self, event: AttemptEvent) -> AttemptEvent:
        return replace(event, attempt=self.attempt, invocation=self.invocation)

    def record_once(self, event: AttemptEvent) -> None:
        """What every rank knows is told by rank 0."""
        if self.ranks.leads:
            self.record(event)

    def record_fault(self, error: Exception, step: int | None = None) -> None:
        """From the rank that has it; `step`: the one that it is about, where that is not the one at work."""
        ranks = self.ranks
        place = FaultPlace(
            attempt=self.attempt,
            invocation=self.invocation,
            rank=ranks.rank,
            host=socket.gethostname(),
            step=self.activity.step if step is None else step,
            phase=self.activity.phase,
            log=str(self.folder.log(self.attempt, ranks.rank)),
        )
        self.record(Fault.of(error, place))

    def warn(self, message: str, **details: Any) -> None:
        """A warning of rank 0, with what programs may want to know of it."""
        self.record_once(Warned(message=message, details=details))
