"""Runs of equal numbers in a sorted array."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from data.types import Ints


def equal_runs(ascending: Ints) -> Iterator[tuple[int, int, int]]:
    """(number, a, b) for each number there is: it fills ascending[a:b]."""
    if len(ascending):
        cuts = (np.flatnonzero(ascending[1:] != ascending[:-1]) + 1).tolist()
        for a, b in pairwise([0, *cuts, len(ascending)]):
            yield int(ascending[a]), a, b
