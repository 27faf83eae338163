"""What a data set is made of: an endless stream of items (rows of tokens, or images) per source."""

from dataclasses import dataclass
from typing import Protocol

from data.arrays import Array, Ints
from data.index.catalog import Catalog

__all__ = ["IGNORED", "Skipped", "skipped_sample"]


IGNORED = -100  # a target or a label from which nothing is learnt


@dataclass(frozen=True)
class Skipped:
    """A sample, or a piece of one, that could not be used and was left blank."""

    shard: str
    key: str
    cause: str


def skipped_sample(catalog: Catalog, sample: int, cause: str) -> Skipped:
    """A sample of the catalog that could not be used; `cause` does not name it again (`Catalog.cause`)."""
    shard, _ = catalog.place(sample)
    return Skipped(catalog.shards[shard].name, catalog.key(sample), cause)


class Source(Protocol):
    """Items of one set of shards. Threads may share it.

    Of a training source, item q belongs to epoch q // count and lies in lane (q % count) % lanes; which sample or row
    it is follows from q, the seed and the data. A validation source has items 0 … count-1, in shard order.
    """

    @property
    def name(self) -> str:
        """`train` or `val`, or the name that the recipe gives a weighted source."""

    @property
    def fingerprint(self) -> str:
        """Changes with the data and with how they become items; not with where the shards lie."""

    @property
    def count(self) -> int:
        """Items of one epoch."""

    @property
    def catalog(self) -> Catalog:
        """The samples that the items are made of."""

    def blank(self, rows: int) -> dict[str, Array]:
        """Arrays of `rows` rows from which nothing is learnt: targets and labels -100."""

    def prefetch(self, items: Ints) -> None:
        """A hint that these items are filled soon; returns at once."""

    def fill(self, items: Ints, rows: Ints, arrays: dict[str, Array]) -> list[Skipped]:
        """Write item items[i] into row rows[i] of blank arrays.

        What cannot be used raises DataError (on_error stop) or stays blank and is returned (skip).
        """

    def left_out(self) -> list[Skipped]:
        """Samples that no item holds, because they cannot be read (on_error skip)."""

    def keys(self, items: Ints) -> list[str]:
        """What makes up each item: a sample key, or `key[first:last]|…` token ranges."""

    def close(self) -> None:
        """Let go of threads and files."""
