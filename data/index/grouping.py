"""Tar members -> samples, by WebDataset's rule: neighbours of one key are one sample."""

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from configs.errors import DataError
from data.arrays import Bytes, Ints
from data.index.tar_members import Members

_FEW_CELLS = 1 << 22  # 64 MiB
_CELLS_PER_MEMBER = 64
# webdataset.tariterators: the key ends at the first dot of the base name; hidden files have none, __meta__ is skipped.
_META = re.compile(rb"__[^/]*__($|/)")


class Grouping:
    """Samples of one shard, as its members are added in order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.keys: list[bytes] = []
        self._part_of: dict[bytes, int] = {}  # as spelt in the shard
        self._parts: dict[str, int] = {}  # in lower case
        self._found: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []

    def add(self, members: Members) -> None:
        """Members that make no part of a sample are left out."""
        rows: list[int] = []
        samples: list[int] = []
        parts: list[int] = []
        keys, part_of = self.keys, self._part_of
        current = keys[-1] if keys else None
        for row, name in enumerate(members.names):
            base = name.rfind(b"/") + 1
            dot = name.find(b".", base)
            if dot <= base or (name.startswith(b"__") and _META.match(name)):
                continue
            # Members of a sample are neighbours: a key that comes again later is refused in `tables`.
            if name[:dot] != current:
                current = name[:dot]
                keys.append(current)
            part = part_of.get(name[dot + 1 :])
            rows.append(row)
            samples.append(len(keys) - 1)
            parts.append(self._new_part(name[dot + 1 :]) if part is None else part)
        columns = (np.array(samples, np.int64), np.array(parts, np.int64))
        self._found.append((*columns, members.offsets[rows], members.sizes[rows], members.starts[rows]))

    def _new_part(self, spelt: bytes) -> int:
        part = self._parts.setdefault(spelt.decode().lower(), len(self._parts))
        self._part_of[spelt] = part
        return part

    def tables(self) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
        """Names of the parts, sorted; offsets[p, n] and sizes[p, n], -1 where absent; where each sample starts.

        DataError: no samples, a key used for two samples, or a part that a sample has twice.
        """
        if not self.keys:
            raise DataError(f"{self._name}: the archive holds no samples: remove the shard or make it again")
        samples, parts, offsets, sizes, starts = (np.concatenate(column) for column in zip(*self._found, strict=True))
        names = tuple(sorted(self._parts))
        self._refuse_many(names, len(samples))
        row_of = np.empty(len(names), np.int64)
        row_of[[self._parts[name] for name in names]] = np.arange(len(names))
        # Two members in one cell are a part that a sample has twice.
        cells = row_of[parts] * len(self.keys) + samples
        self._refuse_repeated(cells, names)
        tables = np.full((2, len(names) * len(self.keys)), -1, np.int64)
        tables[:, cells] = offsets, sizes
        offsets_PN, sizes_PN = tables.reshape(2, len(names), len(self.keys))
        first_members = np.flatnonzero(np.diff(samples, prepend=-1))
        return names, offsets_PN, sizes_PN, starts[first_members]

    def _refuse_many(self, names: tuple[str, ...], members: int) -> None:
        """The tables are dense: hardly any cell of them would be used."""
        if len(names) * len(self.keys) > max(_FEW_CELLS, _CELLS_PER_MEMBER * members):
            raise DataError(
                f"{self._name}: its {len(self.keys)} samples have {len(names)} different parts, as "
                f"{', '.join(names[:3])}: a key ends at the first dot of a name, so use dots for the parts only "
                "(a_00017.jpg, not a.00017.jpg)"
            )

    def _refuse_repeated(self, cells: Ints, names: tuple[str, ...]) -> None:
        if len(set(self.keys)) < len(self.keys):
            key = _first_repeated(self.keys).decode()
            raise DataError(
                f"{self._name}: the parts of sample {key} are not together (or the key is used twice): "
                "make the shard with keys in order, each used once"
            )
        if len(np.unique(cells)) < len(cells):
            part, sample = divmod(_first_repeated(cells.tolist()), len(self.keys))
            raise DataError(
                f"{self._name}: sample {self.keys[sample].decode()} has part {names[part]} twice: keep one, "
                "or give the samples unique keys"
            )


def key_table(keys: list[bytes]) -> tuple[Bytes, Ints]:
    """All keys end to end, and where each starts and the last ends."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    return np.frombuffer(b"".join(keys), np.uint8), np.concatenate(([0], np.cumsum(lengths)))


T = TypeVar("T", bytes, int)


def _first_repeated(values: Sequence[T]) -> T:
    seen: set[T] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    raise ValueError("none is repeated")
