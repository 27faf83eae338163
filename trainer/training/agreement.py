"""What the ranks tell each other before each step, in one all-reduce."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from trainer.rank.ranks import Ranks
from trainer.training.outcome import Leave


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What all ranks know of a step before it is taken: each field is the sum over ranks, one all-reduce.

    Until `sum_over` each rank has one with its own share. A flag is true in the sum where it is true on any rank.
    """

    targets: float  # that the global batch predicts: the weight by which its loss is divided
    skipped_samples: int  # left out of the global batch (data.on_error: skip)
    leave: Leave  # rank 0's share alone, so that the sum is its word
    unreadable: bool  # some rank has no batch, and knows why
    save_failed: bool
    hopeless: bool  # rank 0's share alone: to train on is not worth it
    previous_loss: float  # of the step before, where every step is judged
    previous_broken: bool  # the state after the step before holds what is no number

    def sum_over(self, ranks: Ranks) -> Self:
        """(all ranks) One all-reduce of 64 bytes in float64, on the host: it never waits for the device."""
        return self.unpack(ranks.sum(self.pack()))

    def pack(self) -> list[float]:
        """One number a field, in the order of the fields."""
        return [float(getattr(self, field.name)) for field in fields(self)]

    @classmethod
    def unpack(cls, sums: Sequence[float]) -> Self:
        """From sums of what `pack` gives. Raises ValueError when there are more or fewer than fields."""
        by_name = dict(zip((field.name for field in fields(cls)), sums, strict=True))
        return cls(
            targets=by_name["targets"],
            skipped_samples=int(by_name["skipped_samples"]),
            leave=Leave(int(by_name["leave"])),
            unreadable=bool(by_name["unreadable"]),
            save_failed=bool(by_name["save_failed"]),
            hopeless=bool(by_name["hopeless"]),
            previous_loss=by_name["previous_loss"],
            previous_broken=bool(by_name["previous_broken"]),
        )
