"""What lies at each position, worked out the long way: all of it, in lists, one step after the other.

Written from what data/order/: epoch, lanes, mixture and global_batch promise; only the random draws are shared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, count, islice, repeat

from data import draws

BLOCK_SAMPLES = 64


@dataclass(frozen=True)
class NaiveSource:
    """Shards of these many samples of equal size; a source that stops is used once."""

    name: str
    fingerprint: str
    shards: Sequence[int]
    sample_bytes: int
    weight: str
    stops: bool

    @property
    def samples(self) -> int:
        return sum(self.shards)

    def epoch(self, seed: int, epoch: int, lanes: int, window_bytes: int) -> list[int]:
        """Sample ids in the order in which they are used."""
        key = (self.fingerprint, seed, epoch)
        windows: list[list[int]] = []
        for lane, blocks in enumerate(self._lanes(seed, lanes)):
            lane_bytes, number = 0, -1
            for i in draws.permutation(len(blocks), ("blocks", *key, lane)).tolist():
                if lane_bytes // (window_bytes // lanes) != number:
                    number = lane_bytes // (window_bytes // lanes)
                    windows.append([])
                windows[-1] += blocks[i]
                lane_bytes += len(blocks[i]) * self.sample_bytes
        places: list[int] = []
        for number, ids in enumerate(windows):
            places += [ids[i] for i in draws.permutation(len(ids), ("window", *key, number)).tolist()]
        sizes = [self.samples // lanes + (lane < self.samples % lanes) for lane in range(lanes)]
        starts = list(accumulate(sizes, initial=0))
        return [places[starts[p % lanes] + p // lanes] for p in range(self.samples)]

    def _lanes(self, seed: int, lanes: int) -> list[list[range]]:
        """The blocks of each lane: one that ends after the share of the lanes before is up belongs to the next."""
        found: list[list[range]] = [[] for _ in range(lanes)]
        used = 0
        for shard in draws.permutation(len(self.shards), ("shards", self.fingerprint, seed)).tolist():
            first = sum(self.shards[:shard])
            for a in range(first, first + self.shards[shard], BLOCK_SAMPLES):
                block = range(a, min(a + BLOCK_SAMPLES, first + self.shards[shard]))
                used += len(block)
                found[sum(lane * self.samples // lanes < used for lane in range(1, lanes))].append(block)
        return found


@dataclass(frozen=True)
class Use:
    """Sample `sample` of source `source`, in epoch `epoch` of that source."""

    source: str
    epoch: int
    sample: int


def naive_batches(
    sources: Sequence[NaiveSource], seed: int, lanes: int, window_bytes: int, batch: int, batches: int
) -> list[list[Use]]:
    """The first global batches, in order of position; fewer, or a short last one, when every source stops."""
    stream = _mixture(sources)
    orders: dict[tuple[int, int], list[int]] = {}
    found = []
    for _ in range(batches):
        members = sorted(islice(stream, batch), key=lambda m: m[1] % sources[m[0]].samples % lanes)
        uses = []
        for number, item in members:
            source = sources[number]
            epoch, position = divmod(item, source.samples)
            if (number, epoch) not in orders:
                orders[number, epoch] = source.epoch(seed, epoch, lanes, window_bytes)
            uses.append(Use(source.name, epoch, orders[number, epoch][position]))
        found.append(uses)
    return found


def _mixture(sources: Sequence[NaiveSource]) -> Iterator[tuple[int, int]]:
    """(source number, item number) of position 0, 1, …"""
    used, active = [0] * len(sources), list(range(len(sources)))
    while active:
        for number in _deal(sources, active):
            yield number, used[number]
            used[number] += 1
            if sources[number].stops and used[number] == sources[number].samples:
                active.remove(number)
                break


def _deal(sources: Sequence[NaiveSource], active: Sequence[int]) -> Iterator[int]:
    """Halves, and halves of halves: the left one gets its next turn as soon as half of it is due."""
    if len(active) == 1:
        yield from repeat(active[0])
    half = len(active) // 2
    left, right = _deal(sources, active[:half]), _deal(sources, active[half:])
    weights = [Fraction(sources[number].weight) for number in active]
    had = 0
    for positions in count(1):
        due = int(positions * sum(weights[:half]) / sum(weights) + Fraction(1, 2))
        yield next(left if due > had else right)
        had = due
