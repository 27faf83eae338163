"""The figures of one logging interval, from what was counted and timed in it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Workload"]


@dataclass(frozen=True)
class Workload:
    """What a step computes, and how fast the devices could be at best: the same for a whole attempt."""

    samples_per_step: int
    flops_per_target: float
    units: Literal["tokens", "images", "samples"]
    peak_flops: Callable[[], float]  # FLOP/s of all workers' devices together; may be measured at the first call


@dataclass
class StepCounts:
    """What was computed since the last logged line. A step that was left out counts nothing: it computed nothing."""

    steps: int = 0
    targets: float = 0.0  # predicted, over all ranks
    own_s: float = 0.0  # this rank's own work

    def add(self, targets: float, own_s: float) -> None:
        """One computed step."""
        self.steps += 1
        self.targets += targets
        self.own_s += own_s


@dataclass(frozen=True)
class Interval:
    """One logging interval as this rank saw it: seconds by phase, which together are its wall time."""

    counts: StepCounts
    training_s: float  # what no phase below claimed
    data_wait_s: float
    checkpoint_s: float
    validation_s: float

    def figures(self, workload: Workload, step: int, targets_so_far: int, longest_data_wait_s: float) -> dict[str, Any]:
        """For the line of `step`. Seconds are sums over the interval, `step_s` is per step.

        `longest_data_wait_s`: of the rank that waited longest for its data. The others waited for it in the
        all-reduce of the step, which each of them counts as training: it is taken out here.
        """
        train_s = max(self.training_s + self.data_wait_s - longest_data_wait_s, 1e-9)
        loop_s = train_s + longest_data_wait_s + self.checkpoint_s
        figures = {
            "samples": step * workload.samples_per_step,
            "samples_per_s": self.counts.steps * workload.samples_per_step / loop_s,
            "step_s": train_s / max(self.counts.steps, 1),
            "data_wait_s": longest_data_wait_s,
            "checkpoint_s": self.checkpoint_s,
            "validation_s": self.validation_s,
            "mfu": self.counts.targets * workload.flops_per_target / loop_s / workload.peak_flops(),
        }
        if workload.units == "tokens":
            figures |= {"tokens": targets_so_far, "tokens_per_s": self.counts.targets / loop_s}
        return figures
