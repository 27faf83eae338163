"""A source held in memory: the order is the real one, there is nothing to read."""

from collections.abc import Sequence

import numpy as np

from data.arrays import Array, Ints
from data.index.catalog import Catalog
from data.index.shuffle_blocks import GROUP_SAMPLES, ShuffleBlocks, split_into_blocks
from data.order.epochs import SampleStream
from data.source import Skipped

SAMPLE_BYTES = 100


def equal_blocks(shard_samples: Sequence[int], sample_bytes: int = SAMPLE_BYTES) -> ShuffleBlocks:
    """Of shards of these many samples of equal size."""
    groups = []
    for count in shard_samples:
        sizes = np.full(-(-count // GROUP_SAMPLES), GROUP_SAMPLES)
        sizes[-1] -= -count % GROUP_SAMPLES
        groups.append(sizes * sample_bytes)
    return split_into_blocks(np.array(shard_samples), groups)


class MemorySource:
    """Sample s has label s and key `s`; the samples in `damaged` are skipped."""

    def __init__(
        self,
        name: str,
        shard_samples: Sequence[int],
        seed: int | None,
        lanes: int,
        window_bytes: int = 40 * SAMPLE_BYTES,
        damaged: frozenset[int] = frozenset(),
    ) -> None:
        self.name = name
        self.fingerprint = f"memory {name} {list(shard_samples)}"
        self.catalog = Catalog([], [])
        self._stream = SampleStream(equal_blocks(shard_samples), window_bytes, self.fingerprint, seed, lanes)
        self.count = self._stream.count
        self._damaged = damaged
        self.closed = False

    def blank(self, rows: int) -> dict[str, Array]:
        return {"labels_B": np.full(rows, -100, np.int64), "epochs_B": np.full(rows, -1, np.int64)}

    def prefetch(self, items: Ints) -> None:
        """There is nothing to read."""

    def fill(self, items: Ints, rows: Ints, arrays: dict[str, Array]) -> list[Skipped]:
        located = self._stream.locate(items)
        skipped = []
        for row, sample, epoch in zip(rows.tolist(), located.sample_ids.tolist(), located.epochs.tolist(), strict=True):
            if sample in self._damaged:
                skipped.append(Skipped(self.name, str(sample), "damaged"))
            else:
                arrays["labels_B"][row], arrays["epochs_B"][row] = sample, epoch
        return skipped

    def left_out(self) -> list[Skipped]:
        return []

    def keys(self, items: Ints) -> list[str]:
        return [str(sample) for sample in self._stream.locate(items).sample_ids.tolist()]

    def close(self) -> None:
        self.closed = True
