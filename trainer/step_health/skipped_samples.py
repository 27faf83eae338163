"""Samples that were left out (`data.on_error: skip`): counted over all workers and restarts, told, and capped."""

from collections.abc import Sequence

from cluster.run.events import Event
from cluster.run.run_events import AttemptStarted, Resumed, SampleSkipped
from configs.errors import DataError
from data.source import Skipped
from trainer.rank.context import Context

__all__ = ["SkippedSamples"]


class SkippedSamples:
    """`total` counts the committed history and is the same on every rank."""

    def __init__(self, context: Context, resumed_step: int, left_out: Sequence[Skipped]) -> None:
        """`left_out`: of the training data, from the start and for good; the same on every rank."""
        self._context = context
        self._seen_in_validation: set[tuple[str, str]] = set()
        self.total = len(left_out) + context.ranks.from_leader(committed_skips(context.ledger.events(), resumed_step))
        if context.ranks.leads and resumed_step == 0:
            self.tell(0, left_out)

    def refusal(self, step: int, skipped: int, total_weight: float) -> DataError | None:
        """Why step `step` cannot be trained with `skipped` of its samples left out, if so; the same on every rank."""
        allowed = self._context.recipe.data.max_skipped
        if self.total + skipped > allowed:
            return DataError(
                f"{self.total + skipped} samples had to be skipped up to step {step}, more than data.max_skipped "
                f"{allowed}: mend the shards or raise data.max_skipped; {self._where}"
            )
        return self._nothing_left(f"the global batch of step {step}", skipped, total_weight)

    def validation_refusal(self, step: int, skipped: int, total_weight: float) -> DataError | None:
        """As `refusal`, for a validation: it leaves out the same samples each time, so each time counts anew."""
        allowed = self._context.recipe.data.max_skipped
        if skipped > allowed:
            return DataError(
                f"{skipped} samples had to be skipped in the validation at step {step}, more than data.max_skipped "
                f"{allowed}: mend the shards or raise data.max_skipped; {self._where}"
            )
        return self._nothing_left(f"the validation set at step {step}", skipped, total_weight)

    def _nothing_left(self, what: str, skipped: int, total_weight: float) -> DataError | None:
        if total_weight > 0:
            return None
        if skipped:
            return DataError(f"nothing in {what} can be used: mend the shards; {self._where}")
        return DataError(f"{what} has no target: every row is empty or padding; give it something to learn from")

    @property
    def _where(self) -> str:
        return f"see {SampleSkipped.event} in {self._context.folder.ledger} for shard, key and cause"

    def trained(self, step: int, own: Sequence[Skipped], everywhere: int) -> None:
        """Step `step` was trained without this rank's `own` samples, `everywhere` over all ranks."""
        self.total += everywhere
        self.tell(step, own)

    def tell(self, step: int, own: Sequence[Skipped]) -> None:
        """Name each of this rank's samples in the ledger."""
        for sample in own:
            self._record(step, "train", sample)

    def validated(self, step: int, own: Sequence[Skipped]) -> None:
        """As `tell`, once per sample and attempt: every validation leaves out the same ones."""
        for sample in own:
            if (sample.shard, sample.key) not in self._seen_in_validation:
                self._seen_in_validation.add((sample.shard, sample.key))
                self._record(step, "val", sample)

    def _record(self, step: int, split: str, sample: Skipped) -> None:
        rank, cause = self._context.ranks.rank, sample.cause
        event = SampleSkipped(step=step, split=split, rank=rank, shard=sample.shard, key=sample.key, cause=cause)
        self._context.record(event)


def committed_skips(events: Sequence[Event], resumed_step: int) -> int:
    """How many training samples the history up to `resumed_step` left out.

    A step that a later attempt trained again counts as that attempt trained it.
    """
    first = {event.attempt or 0: 0 for event in events if isinstance(event, AttemptStarted)}
    first |= {event.attempt or 0: event.step for event in events if isinstance(event, Resumed)}

    def stands(step: int, attempt: int) -> bool:
        return 0 < step <= resumed_step and all(start >= step for later, start in first.items() if later > attempt)

    skips = (event for event in events if isinstance(event, SampleSkipped) and event.split == "train")
    return sum(stands(event.step, event.attempt or 0) for event in skips)
