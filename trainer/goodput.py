"""Goodput: seconds of committed optimizer steps per second of wall time of all `stoker train` commands of a run."""

import time
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]


@dataclass
class Goodput:
    """The figure as it grows during an attempt. Time between two commands, when nothing ran, does not count."""

    productive_s: float
    wall_s_before: float  # of earlier commands
    command_started: float

    @classmethod
    def so_far(cls, events: list[Event], committed: list[Event]) -> "Goodput":
        """From the ledger, whose last command is the present one, and the committed metrics."""
        times = [event["time"] for event in events]
        starts = [index for index, event in enumerate(events) if event["event"] == "command"]
        ends = [times[index - 1] for index in starts[1:]]
        before_s = sum(end - times[start] for start, end in zip(starts, ends, strict=False))
        return cls(productive_seconds(committed), before_s, times[starts[-1]] if starts else time.time())

    def after(self, seconds: float) -> float:
        """The fraction once `seconds` more of optimizer steps are committed."""
        self.productive_s += seconds
        return self.fraction(time.time())

    def fraction(self, now: float) -> float:
        wall_s = self.wall_s_before + now - self.command_started
        return min(1.0, self.productive_s / wall_s) if wall_s > 0 else 0.0


def productive_seconds(committed: list[Event]) -> float:
    """Seconds of optimizer steps in the committed history: each line tells the mean since the line before."""
    total_s, previous = 0.0, 0
    for line in committed:
        total_s += line["step_s"] * (line["step"] - previous)
        previous = line["step"]
    return total_s
