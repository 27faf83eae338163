"""This worker in this attempt."""

import sys
from dataclasses import dataclass, field
from typing import Any

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.errors import RunFolderError
from configs.recipe import Recipe
from trainer.rank.activity import Pulse
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
    pulse: Pulse = field(default_factory=Pulse)

    def record(self, event: str, **details: Any) -> None:
        """Append to the ledger, from this rank."""
        try:
            self.ledger.append(event, attempt=self.attempt, invocation=self.invocation, **details)
        except OSError as error:  # a full disk must not end the training: this rank's log is the next best place
            print(f"{self.folder.ledger} cannot be written ({error.strerror}): {event} {details}", file=sys.stderr)  # noqa: T201

    def claim(self, **details: Any) -> None:
        """Record that this attempt begins. Raises RunFolderError when that cannot be written.

        Older attempts go by it, so an attempt that cannot say that it is there may not begin.
        """
        try:
            self.ledger.append("attempt_started", attempt=self.attempt, invocation=self.invocation, **details)
        except OSError as error:
            raise RunFolderError(
                f"{self.folder.ledger} cannot be written ({error.strerror}), so attempt {self.attempt} cannot begin: "
                "free some space or make it writable, then run the same command again"
            ) from error

    def record_once(self, event: str, **details: Any) -> None:
        """What every rank knows is told by rank 0."""
        if self.ranks.leads:
            self.record(event, **details)

    def warn(self, message: str, **details: Any) -> None:
        self.record_once("warning", message=message, **details)
