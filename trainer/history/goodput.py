"""How much of a run's wall time, and of the time its workers held, was spent in committed optimizer steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.run.events import Event
from cluster.run.ledger import read_json_lines
from cluster.run.run_folder import RunFolder
from trainer.history.wall_time_spans import CLASSES, Figures, Span, SpanClass, fitted, timeline

__all__ = ["Account", "LiveAccount", "live_account", "superseded_lines"]


@dataclass(frozen=True)
class Account:
    """Seconds by class; those of a worker count once for each worker in `worker_seconds`. Pure."""

    seconds: dict[SpanClass, float]
    worker_seconds: dict[SpanClass, float]

    @classmethod
    def of(cls, spans: list[Span]) -> "Account":
        """The sums of a timeline."""
        seconds, held = dict.fromkeys(CLASSES, 0.0), dict.fromkeys(CLASSES, 0.0)
        for span in spans:
            seconds[span.kind] += span.seconds
            held[span.kind] += span.seconds * span.workers
        return cls(seconds, held)

    @property
    def wall_s(self) -> float:
        """Of all classes: the wall time."""
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """Goodput: committed steps in the wall time."""
        return _share_of_steps(self.seconds)

    @property
    def worker_fraction(self) -> float:
        """Committed steps in the time that workers held their cpus and devices."""
        return _share_of_steps(self.worker_seconds)


def _share_of_steps(seconds: Mapping[SpanClass, float]) -> float:
    total_s = sum(seconds.values())
    return seconds["step"] / total_s if total_s > 0 else 0.0


class LiveAccount:
    """The account as it grows during an attempt, from one logging interval to the next."""

    def __init__(self, so_far: Account, now: float, workers: int) -> None:
        """`so_far`: of the whole history up to `now`; `workers`: of this attempt."""
        self.account = Account(dict(so_far.seconds), dict(so_far.worker_seconds))
        self._counted_to, self._workers = now, workers

    def add(self, parts: Mapping[SpanClass, float], now: float) -> None:
        """Time went on until `now`; what the parts do not claim were steps."""
        passed_s = max(0.0, now - self._counted_to)
        fitting = fitted(parts, passed_s)
        for kind, seconds in {**fitting, "step": passed_s - sum(fitting.values())}.items():
            self.account.seconds[kind] += seconds
            self.account.worker_seconds[kind] += seconds * self._workers
        self._counted_to = max(now, self._counted_to)

    def figures(self) -> dict[str, Any]:
        """For a line of metrics."""
        account = self.account
        return {"goodput": account.fraction, "worker_goodput": account.worker_fraction, "wall_s": dict(account.seconds)}


def live_account(folder: RunFolder, events: Sequence[Event], workers: int) -> LiveAccount:
    """For the attempt that begins now, whose `attempt_started` is in the ledger."""
    now = time.time()
    spans = timeline(events, read_json_lines(folder.metrics), superseded_lines(folder), now)
    return LiveAccount(Account.of(spans), now, workers)


def superseded_lines(folder: RunFolder) -> list[Figures]:
    """Metrics lines of steps that were trained again, of all attempts."""
    return [line for path in folder.all_superseded() for line in read_json_lines(path)]
