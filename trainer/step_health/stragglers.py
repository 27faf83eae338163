"""Which rank is slower than the rest: each one's own work and its wait for data, compared once per logging interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from trainer.rank.ranks import Ranks

__all__ = ["RankTimes", "StragglerWatch"]


LISTED_RANKS = 64  # above that, figures of every rank would swamp metrics.jsonl and TensorBoard
_WINDOW_S = 10.0  # shorter ones tell of the moment's noise
_SLOW_RATIO = 1.5
_SLOW_SHARE = 0.1  # of the wall time: less is not worth a warning


@dataclass(frozen=True)
class RankTimes:
    """Seconds of each rank, by rank: computing, and waiting for its own data. Time spent on others is in neither."""

    own_s: list[float]
    data_wait_s: list[float]

    @classmethod
    def gather(cls, ranks: Ranks, own_s: float, data_wait_s: float) -> "RankTimes":
        """One small sum over the workers; the same on every rank."""
        mine = [0.0] * (2 * ranks.world)
        mine[ranks.rank], mine[ranks.world + ranks.rank] = own_s, data_wait_s
        every = ranks.sum(mine)
        return cls(every[: ranks.world], every[ranks.world :])

    def __add__(self, other: "RankTimes") -> "RankTimes":
        return RankTimes(_sums(self.own_s, other.own_s), _sums(self.data_wait_s, other.data_wait_s))

    @property
    def busy_s(self) -> list[float]:
        """Each rank's own work and its wait for data, in seconds."""
        return _sums(self.own_s, self.data_wait_s)

    def figures(self) -> dict[str, Any]:
        """For a line of metrics; nothing of a single rank, which is never slower than the rest."""
        if len(self.own_s) == 1:
            return {}
        listed = {"rank_own_s": self.own_s, "rank_data_wait_s": self.data_wait_s}
        figures: dict[str, Any] = listed if len(self.own_s) <= LISTED_RANKS else {}
        if any(self.own_s):  # without it, the waits for data alone, which are short, tell little
            slowest = compare(self)
            figures = {"slowest_rank": slowest.rank, "slowest_rank_ratio": slowest.ratio, **figures}
        return figures


@dataclass(frozen=True)
class Slowest:
    """The rank with the most time of its own, beside the median of the others."""

    rank: int
    busy_s: float
    others_s: float
    data_bound: bool  # most of the difference is waiting for data

    @property
    def ratio(self) -> float:
        """Its own time over the median of the others."""
        if self.others_s > 0:
            return self.busy_s / self.others_s
        return math.inf if self.busy_s > 0 else 1.0

    def is_slow(self, wall_s: float) -> bool:
        """Whether `wall_s` of training is long enough, and the difference large enough, to say so."""
        excess_s = self.busy_s - self.others_s
        return self.busy_s >= _SLOW_RATIO * self.others_s and excess_s >= _SLOW_SHARE * wall_s


def compare(times: RankTimes) -> Slowest:
    """Of two ranks or more."""
    busy = times.busy_s
    rank = max(range(len(busy)), key=busy.__getitem__)
    others_s = median(s for r, s in enumerate(busy) if r != rank)
    waited_s = times.data_wait_s[rank] - median(s for r, s in enumerate(times.data_wait_s) if r != rank)
    return Slowest(rank, busy[rank], others_s, waited_s > (busy[rank] - others_s) / 2)


class StragglerWatch:
    """Warns of a rank that was slow for a whole window; once, until another is slow or none."""

    def __init__(self, hosts: list[str], warn: Callable[..., None]) -> None:
        self._hosts, self._warn = hosts, warn
        self._named: int | None = None
        self._clear()

    def _clear(self) -> None:
        world = len(self._hosts)
        self._times, self._wall_s, self._steps = RankTimes([0.0] * world, [0.0] * world), 0.0, 0

    def add(self, step: int, times: RankTimes, wall_s: float, steps: int) -> None:
        """One logging interval of `steps` steps that ended with `step`."""
        self._times, self._wall_s, self._steps = self._times + times, self._wall_s + wall_s, self._steps + steps
        if self._wall_s < _WINDOW_S or len(self._hosts) == 1:
            return
        slowest = compare(self._times)
        named = slowest.rank if slowest.is_slow(self._wall_s) else None
        if named is not None and named != self._named:
            self._warn_of(step, slowest)
        self._named = named
        self._clear()

    def _warn_of(self, step: int, slowest: Slowest) -> None:
        host, steps = self._hosts[slowest.rank], max(self._steps, 1)  # all may have been left out
        busy_s, others_s = slowest.busy_s / steps, slowest.others_s / steps
        doing, look_for = (
            ("waiting for data", "its storage") if slowest.data_bound else ("computing", "other load there")
        )
        self._warn(
            f"rank {slowest.rank} on {host} is slower than the rest and they wait for it: {busy_s:.3g} s a step of its "
            f"own, most of the difference {doing}, against {others_s:.3g} s of the others, "
            f"over the {self._steps} steps up to {step}: look for {look_for}",
            kind="straggler",
            rank=slowest.rank,
            host=host,
            step=step,
            busy_s=busy_s,
            others_s=others_s,
        )


def _sums(first: list[float], second: list[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]
