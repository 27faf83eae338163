"""Which positions form which micro-batch on which worker. Pure."""

from dataclasses import dataclass

from configs.recipe import Batch
from data.arrays import Array
from data.source import Skipped

__all__ = ["MicroBatch", "Slice", "eval_slices", "step_slices"]


@dataclass(frozen=True)
class Slice:
    """Micro-batch `micro` covers positions start … stop-1 of the stream; empty when start == stop."""

    micro: int
    start: int
    stop: int


@dataclass(frozen=True)
class Rows:
    """Arrays padded to a fixed number of rows; `targets` counts what is learnt from: labels or tokens not -100.

    Of what was `skipped` nothing is learnt; images of it have no row, and `samples` excludes them.
    """

    arrays: dict[str, Array]
    samples: int
    targets: int
    skipped: list[Skipped]


@dataclass(frozen=True)
class MicroBatch:
    """`index` numbers it within the step's global batch; `keys` are in order of position.

    `samples` excludes blanks and skipped images.
    """

    step: int
    index: int
    arrays: dict[str, Array]
    samples: int
    targets: int
    keys: list[str]
    skipped: list[Skipped]


def step_slices(step: int, batch: Batch, rank: int, ranks: int) -> list[Slice]:
    """This rank's micro-batches of step `step` (counted from 1); on every rank accumulation(ranks) of them."""
    start = (step - 1) * batch.global_
    return _slices_of_rank(start, start + batch.global_, batch.micro, rank, ranks)


def eval_slices(count: int, micro: int, rank: int, ranks: int) -> list[Slice]:
    """This rank's micro-batches of one pass over positions 0 … count-1, equally many on every rank."""
    return _slices_of_rank(0, count, micro, rank, ranks)


def _slices_of_rank(start: int, stop: int, micro: int, rank: int, ranks: int) -> list[Slice]:
    """A contiguous run for each rank, for what lies close together in the stream lies close together on disk."""
    count = -(-(stop - start) // micro)
    numbers = range(count * rank // ranks, count * (rank + 1) // ranks)
    slices = [Slice(n, start + n * micro, min(start + (n + 1) * micro, stop)) for n in numbers]
    if len(slices) < -(-count // ranks):  # shares differ by at most one
        slices.append(Slice(count + rank, stop, stop))
    return slices
