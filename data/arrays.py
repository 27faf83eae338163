"""Types shared by the data package."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PROGRESS_S", "Array", "Bytes", "Ints", "Say", "equal_runs", "ranges_of", "silent"]


Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Say = Callable[[str], None]
PROGRESS_S = 2.0  # between two lines that say how far a long task is


def silent(_line: str) -> None:
    """A `say` for callers with nobody listening."""


def equal_runs(ascending: Ints) -> Iterator[tuple[int, int, int]]:
    """(number, a, b) for each number there is: it fills ascending[a:b]."""
    if len(ascending):
        bounds = (np.flatnonzero(ascending[1:] != ascending[:-1]) + 1).tolist()
        for a, b in pairwise([0, *bounds, len(ascending)]):
            yield int(ascending[a]), a, b


def ranges_of(starts: Ints, counts: Ints, step: int) -> Ints:
    """starts[0], starts[0] + step, …, `counts[0]` of them, then those of starts[1], and so on."""
    before = np.cumsum(counts) - counts
    numbers = np.arange(counts.sum())
    numbers *= step
    numbers += np.repeat(starts - before * step, counts)
    return numbers
