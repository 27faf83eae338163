"""Which source each position of the stream draws from, and which of its items: a function of position alone. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TypeVar

import numpy as np

from data.arrays import Ints, equal_runs

__all__ = ["Mixture", "Portion"]


# Sums of weights as integers: a remainder times a weight stays inside 64 bits.
MAX_TOTAL_WEIGHT = 1 << 31

_Number = TypeVar("_Number", int, Ints)


@dataclass(frozen=True)
class Portion:
    """A source in a mixture: its share is `weight` over the sum of weights; it has `limit` (≥ 1) items at most."""

    weight: float
    limit: int | None = None


class _Leaf:
    """One source, which has every position that reaches it."""

    def __init__(self, source: int) -> None:
        self.source = source

    def assign(self, positions: Ints, sources: Ints, items: Ints, chosen: Ints) -> None:
        """Write source and item of each position into elements `chosen` of the two arrays."""
        sources[chosen], items[chosen] = self.source, positions

    def count(self, positions: int, into: list[int]) -> None:
        """Write into `into` how many of the first `positions` each source has."""
        into[self.source] = positions

    def positions_until(self, source: int, items: int) -> int | None:
        """`items`, if this is the source; see _Split."""
        return items if source == self.source else None


class _Split:
    """Positions dealt to two halves: after p of them the left one has had round(p · its share), exactly."""

    def __init__(self, left: "_Node", right: "_Node", left_weight: int, weight: int) -> None:
        self._left, self._right = left, right
        self._left_weight, self._weight = left_weight, weight

    def assign(self, positions: Ints, sources: Ints, items: Ints, chosen: Ints) -> None:
        """Write source and item of each position into elements `chosen` of the two arrays."""
        before = self._to_left(positions)
        left = self._to_left(positions + 1) > before
        right = ~left
        self._left.assign(before[left], sources, items, chosen[left])
        self._right.assign((positions - before)[right], sources, items, chosen[right])

    def count(self, positions: int, into: list[int]) -> None:
        """Write into `into` how many of the first `positions` each source has."""
        before = self._to_left(positions)
        self._left.count(before, into)
        self._right.count(positions - before, into)

    def positions_until(self, source: int, items: int) -> int | None:
        """The least number of positions that give the source `items` (at least one); None when it is elsewhere."""
        # Both results invert the rounding of `_to_left`: the first position after which a half has had so many.
        right_weight, half = self._weight - self._left_weight, self._weight // 2
        left = self._left.positions_until(source, items)
        if left is not None:
            return -((half - left * self._weight) // self._left_weight)
        right = self._right.positions_until(source, items)
        return None if right is None else ((right - 1) * self._weight + half) // right_weight + 1

    def _to_left(self, positions: _Number) -> _Number:
        # As (positions · left_weight + half) // weight, but for a product that could outgrow 64 bits.
        turns, rest = divmod(positions, self._weight)
        return turns * self._left_weight + (rest * self._left_weight + self._weight // 2) // self._weight


_Node = _Leaf | _Split


@dataclass(frozen=True)
class _Segment:
    """From position `start` on, where sources have had `used` items, `tree` deals to the sources not used up."""

    start: int
    used: tuple[int, ...]
    tree: _Node


class Mixture:
    """Sources drawn from in proportion to their weights, evenly: no random numbers.

    The sources are split in two halves, these again, and at each split a position goes to the half that is due, so
    before any position p of a mixture without limits a source has had p times its share of items, give or take half
    an item per split above it (ceil(log2 of the number of sources) splits). A source that reaches its limit leaves, and
    from there the others share by their weights. `end` is the number of positions, None without end.
    """

    def __init__(self, portions: Sequence[Portion]) -> None:
        self._portions = tuple(portions)
        self._weights = integer_weights([portion.weight for portion in portions])
        self._segments: list[_Segment] = []
        self.end: int | None = None
        self._build_segments()
        self._starts = np.array([segment.start for segment in self._segments])

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """(source number, item number within it) of each position below `end`."""
        sources, items = np.empty((2, len(positions)), np.int64)
        numbers = np.searchsorted(self._starts, positions, "right") - 1
        by_segment = np.argsort(numbers, kind="stable")
        for number, a, b in equal_runs(numbers[by_segment]):
            segment, chosen = self._segments[number], by_segment[a:b]
            segment.tree.assign(positions[chosen] - segment.start, sources, items, chosen)
            items[chosen] += np.array(segment.used)[sources[chosen]]
        return sources, items

    def counts(self, positions: int) -> list[int]:
        """Items of each source among positions 0 … positions-1 (at most `end`)."""
        segment = self._segments[int(np.searchsorted(self._starts, positions, "right")) - 1]
        return self._counts_after(segment, positions - segment.start)

    def _counts_after(self, segment: _Segment, positions: int) -> list[int]:
        dealt = [0] * len(self._portions)
        segment.tree.count(positions, dealt)
        return [a + b for a, b in zip(segment.used, dealt, strict=True)]

    def _build_segments(self) -> None:
        # Shares are constant between the positions at which a source is used up: one tree for each such segment.
        start, used = 0, [0] * len(self._portions)
        limits = [portion.limit for portion in self._portions]
        while active := [i for i, limit in enumerate(limits) if limit is None or used[i] < limit]:
            segment = _Segment(start, tuple(used), _deal_tree(active, self._weights))
            self._segments.append(segment)
            limited = [(i, limit - used[i]) for i in active if (limit := limits[i]) is not None]
            if not limited:
                return
            length = min(n for i, left in limited if (n := segment.tree.positions_until(i, left)) is not None)
            used = self._counts_after(segment, length)
            start += length
        self.end = start


def integer_weights(weights: Sequence[float]) -> list[int]:
    """The weights as written in the recipe (0.7, 0.3 -> 7, 3), or to one part in 2**30 of their sum; at least 1."""
    # By way of text: 0.7 is 7/10, as the user wrote it, and not the nearest binary fraction.
    exact = [Fraction(str(weight)) for weight in weights]
    denominator = lcm(*(weight.denominator for weight in exact))
    found = [int(weight * denominator) for weight in exact]
    if sum(found) < MAX_TOTAL_WEIGHT:
        return found
    total = sum(exact)
    return [max(1, round(weight / total * (MAX_TOTAL_WEIGHT >> 1))) for weight in exact]


def _deal_tree(sources: list[int], weights: list[int]) -> _Node:
    if len(sources) == 1:
        return _Leaf(sources[0])
    left, right = sources[: len(sources) // 2], sources[len(sources) // 2 :]
    left_weight, right_weight = (sum(weights[source] for source in half) for half in (left, right))
    return _Split(_deal_tree(left, weights), _deal_tree(right, weights), left_weight, left_weight + right_weight)
