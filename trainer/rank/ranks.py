"""Who am I among the workers, and the few host-side agreements they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["Ranks"]


T = TypeVar("T")
_TIMEOUT = timedelta(seconds=600)  # as the workers' own group: see trainer/rank/process_group.py


@dataclass(frozen=True)
class Ranks:
    """This worker's place. `control` is a gloo group of its own, so that small agreements never wait for the device."""

    rank: int
    world: int
    control: Any = None

    @classmethod
    def connect(cls) -> "Ranks":
        """Join the process group that the launcher made (Ray Train, or torchrun-like environments in tests)."""
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_TIMEOUT))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes what all ranks know."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over the workers, in float64; the same bits on every rank."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(value) for value in total]

    def sum_tensor(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the workers, in place, where the tensor lies; the same bits on every rank."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_leader(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]
