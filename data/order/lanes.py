"""Lanes: equal parts of an epoch that are read side by side. Pure."""

import numpy as np

from data.arrays import Ints


def lane_starts(count: int, lanes: int) -> Ints:
    """Where each lane starts in an epoch of `count` places, and `count` at the end: their sizes differ by at most 1."""
    sizes = np.full(lanes, count // lanes, np.int64)
    sizes[: count % lanes] += 1
    return np.concatenate(([0], np.cumsum(sizes)))


def places(positions: Ints, count: int, lanes: int) -> Ints:
    """The place of each position of an epoch: position p is number p // lanes of lane p % lanes."""
    numbers, lane = np.divmod(positions, lanes)
    # The first `longer` lanes have one place more.
    size, longer = divmod(count, lanes)
    found: Ints = lane * size + np.minimum(lane, longer) + numbers
    return found
