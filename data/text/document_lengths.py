"""Lengths of documents that must be read to be known: worked out once per shard and kept beside it."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np

from configs.errors import DamagedDataError
from data.arrays import Array, Ints, Say
from data.index import sidecar
from data.index.catalog import Catalog
from data.index.column import Column
from data.index.shuffle_blocks import ShuffleBlocks


class DocumentLengths(Protocol):
    """Tokens of each sample, end of document included."""

    def __getitem__(self, sample: int) -> int: ...
    def take(self, samples: Ints) -> Ints:
        """Of these samples, in their order."""

    def block_totals(self, blocks: ShuffleBlocks) -> Ints:
        """The sum over each block."""


# Called for a sample that cannot be read; raises where the run is to stop at it.
OnUnreadable = Callable[[int, DamagedDataError], None]
# Numbers about each of these samples, "lengths" among them.
MeasureDocuments = Callable[[range, OnUnreadable], dict[str, Array]]


class MeasuredLengths:
    """`columns["lengths"]`, and whatever else `measure` gives for each document.

    A document that cannot be read counts as one token, from which nothing is learnt. It is kept with its cause, so
    that every process, now and after a restart, sees the same lengths. The shard is measured again once one of them
    can be read; with `raises` in any case, and what cannot be read is raised.
    """

    def __init__(self, catalog: Catalog, name: str, measure: MeasureDocuments, raises: bool, say: Say) -> None:
        self._catalog = catalog
        self._name = name
        self._measure = measure
        self._raises = raises
        self._say = say
        self.unreadable: dict[int, str] = {}
        tables = [self._load_shard(shard) for shard in range(len(catalog.shards))]
        self.columns = {field: Column([table[field] for table in tables]) for field in tables[0]}
        if self.unreadable:
            sample, cause = next(iter(self.unreadable.items()))
            count = f"{len(self.unreadable)} of {catalog.count}"
            say(f"{count} documents cannot be read and are left out: first {catalog.where(sample)}: {cause}")

    @property
    def identity(self) -> str:
        """Empty, unless lengths depend on what could not be read."""
        return _digest_of(self.unreadable)

    def stamp(self, shard: int) -> str:
        """Changes when the lengths of this shard may."""
        start, stop = self._catalog.starts[shard : shard + 2].tolist()
        here = [sample - start for sample in self.unreadable if start <= sample < stop]
        return self._catalog.indexes[shard].digest + _digest_of(here)

    def refuse_unreadable(self, sample: int) -> None:
        """DamagedDataError with the cause that was found when the lengths were worked out."""
        if sample in self.unreadable:
            raise DamagedDataError(f"{self._catalog.where(sample)}: {self.unreadable[sample]}")

    def _load_shard(self, number: int) -> dict[str, Array]:
        shard, stamp = self._catalog.shards[number], self._catalog.indexes[number].digest
        kept = sidecar.load_or_build(
            shard, self._name, stamp, partial(self._measure_shard, number), self._say, partial(self._is_usable, number)
        )
        samples, causes = kept.pop("unreadable").tolist(), kept.pop("causes").tolist()
        start = int(self._catalog.starts[number])
        self.unreadable |= {start + i: cause.decode() for i, cause in zip(samples, causes, strict=True)}
        return kept

    def _is_usable(self, number: int, kept: dict[str, Array]) -> bool:
        """Not so once a document is readable again, perhaps after the shard's host was put right."""
        unreadable = (self._catalog.starts[number] + kept["unreadable"]).tolist()
        return not unreadable or not (self._raises or any(map(self._is_readable, unreadable)))

    def _is_readable(self, sample: int) -> bool:
        found: list[DamagedDataError] = []
        self._measure(range(sample, sample + 1), lambda _sample, error: found.append(error))
        return not found

    def _measure_shard(self, number: int) -> dict[str, Array]:
        shard, count = self._catalog.shards[number], len(self._catalog.shards)
        self._say(f"working out the lengths of shard {number + 1} of {count} (once): {shard.name}")
        start, stop = self._catalog.starts[number : number + 2].tolist()
        unreadable: dict[int, str] = {}

        def on_unreadable(sample: int, error: DamagedDataError) -> None:
            if self._raises:
                raise error
            unreadable[sample - start] = self._catalog.cause(sample, error)

        numbers = self._measure(range(start, stop), on_unreadable)
        # Kept arrays hold no Python objects.
        causes = [cause.encode() for cause in unreadable.values()]
        samples = np.fromiter(unreadable, np.int64)
        return {**numbers, "unreadable": samples, "causes": np.array(causes, np.bytes_)}


def _digest_of(samples: Iterable[int]) -> str:
    listed = ",".join(map(str, sorted(samples)))
    return f" without {hashlib.sha256(listed.encode()).hexdigest()}" if listed else ""
