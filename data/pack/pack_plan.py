"""Inputs -> shards: which input goes into which shard, in which order. Pure."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from configs.errors import DataError
from data.arrays import Ints
from data.pack.shard_writer import END_BYTES, Parts, ShardLimits

__all__ = [
    "Draws",
    "Inputs",
    "Json",
    "LeftOut",
    "LeftOuts",
    "PackJob",
    "Sample",
    "digest_of",
    "hash_fraction",
    "hash_order",
    "unique_keys",
    "val_draws",
]


FIRST_LEFT_OUT = 10
_MAX_KEY = 80  # ustar has room for 100 bytes with the part
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_HASH_STEP = 2.0**-48

Json = dict[str, Any]
Draws = npt.NDArray[np.float64]


class Sample(NamedTuple):
    """A sample to write; `tokens` counts those of its token part."""

    key: str
    parts: Parts
    tokens: int = 0


class LeftOut(NamedTuple):
    """An input that makes no sample."""

    name: str
    reason: str


class PackJob(Protocol):
    """The inputs of one shard, read in another process perhaps: plain data, small."""

    def samples(self) -> Iterator[Sample | LeftOut]:
        """One per input, in order. DataError names the input that cannot be used; OSError: it cannot be read."""


@dataclass
class LeftOuts:
    """How many inputs make no sample, and the first few of them."""

    count: int = 0
    first: list[LeftOut] = field(default_factory=list)

    def add(self, left_out: LeftOut) -> None:
        """Count one more; the first FIRST_LEFT_OUT are named too."""
        self.count += 1
        if len(self.first) < FIRST_LEFT_OUT:
            self.first.append(left_out)

    def merge(self, other: "LeftOuts") -> None:
        """Count those of `other`, which come after these."""
        self.count += other.count
        self.first += other.first[: FIRST_LEFT_OUT - len(self.first)]


@dataclass(frozen=True)
class Inputs:
    """What is packed: inputs 0 … count-1."""

    kind: str
    options: Json  # all that was chosen and changes the shards
    sizes: Ints  # bytes of each in an archive, headers included; an estimate where it must be read to be known
    order: Ints  # the order in which they are packed
    draws: Draws  # in [0, 1), the lowest go to val; they follow from names, so adding inputs moves no other
    digest: str  # changes when the inputs do, by name or size
    modified: str  # changes when their times of modification do
    job: Callable[[Ints], PackJob]
    facts: Json = field(default_factory=dict)  # of the manifest: classes, tokenizer, vocab
    left_out: LeftOuts = field(default_factory=LeftOuts)  # known without reading

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(self.sizes)


@dataclass(frozen=True)
class PlannedShard:
    """Shard `number` of its split, made of these inputs in this order."""

    split: str
    number: int
    inputs: Ints

    @property
    def name(self) -> str:
        """The file name in OUT.partial."""
        return shard_name(self.split, self.number)


def shard_name(split: str, number: int) -> str:
    """`train-000000.tar` and so on; sorted names are in order of number."""
    return f"{split}-{number:06d}.tar"


def plan_shards(inputs: Inputs, val_fraction: float, limits: ShardLimits) -> list[PlannedShard]:
    """Shards of train, then of val: every input once. A shard of one input may exceed limits.bytes.

    DataError: all inputs go to val.
    """
    is_val = _is_val(inputs.draws, val_fraction)
    shards = []
    for split, chosen in (("train", ~is_val), ("val", is_val)):
        numbers = inputs.order[chosen[inputs.order]]
        ends = _shard_ends(inputs.sizes[numbers], limits)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            shards.append(PlannedShard(split, number, numbers[start:end]))
    if not shards or shards[0].split == "val":
        raise DataError(f"all {inputs.count} inputs go to val, none is left to train on: lower val_fraction")
    return shards


def _is_val(draws: Draws, val_fraction: float) -> npt.NDArray[np.bool_]:
    """Inputs of low draw; at least one of several, however small the fraction."""
    if val_fraction and len(draws) > 1:
        val_fraction = max(val_fraction, float(draws.min()) + _HASH_STEP)
    return draws < val_fraction


def _shard_ends(sizes: Ints, limits: ShardLimits) -> list[int]:
    """Where each shard ends, for inputs of these sizes in order."""
    totals = np.concatenate(([0], np.cumsum(sizes)))
    ends: list[int] = []
    start, count = 0, len(sizes)
    while start < count:
        fits = int(np.searchsorted(totals, totals[start] + limits.bytes - END_BYTES, side="right")) - 1
        start = min(max(fits, start + 1), start + limits.samples, count)
        ends.append(start)
    return ends


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(_encoded(name)).digest()[:6], "big") * _HASH_STEP


def val_draws(names: Iterable[str]) -> Draws:
    """The draws of inputs that have names."""
    # The order is by hash too, so the split needs a hash of its own.
    return np.array([hash_fraction(f"val {name}") for name in names], np.float64)


def hash_order(names: Iterable[str]) -> Ints:
    """Neighbours by name are alike (one class, one package), and order by hash parts them for any reader."""
    return np.argsort(np.array([hash_fraction(name) for name in names], np.float64), kind="stable")


def unique_keys(names: Sequence[str], longest: int = _MAX_KEY) -> list[str]:
    """A key for each name, without dots, slashes or spaces, each once."""
    used: set[str] = set()
    keys = []
    for name in names:
        key = _UNSAFE.sub("_", name)
        if len(key) > longest or key in used:
            key = f"{key[: longest - 13]}-{hashlib.sha256(_encoded(name)).hexdigest()[:12]}"
        used.add(key)
        keys.append(key)
    return keys


def digest_of(items: Iterable[object]) -> str:
    """sha256 over the items' text."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_encoded(f"{item}\0"))
    return digest.hexdigest()


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
