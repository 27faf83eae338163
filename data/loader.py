"""Steps read ahead of the training loop by one background thread."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from configs.recipe import Batch
from data.batch import MicroBatch, step_slices
from data.dataset import Dataset, read_micro_batch
from data.source import Skipped

__all__ = ["HINTED_STEPS", "Loader", "StepBatch"]


HINTED_STEPS = 4


@dataclass(frozen=True)
class StepBatch:
    """One rank's micro-batches of a step; the consumer waited `wait_s` seconds for them."""

    step: int
    micro_batches: list[MicroBatch]
    wait_s: float

    @property
    def skipped(self) -> list[Skipped]:
        """What this rank left out of the step."""
        return [sample for batch in self.micro_batches for sample in batch.skipped]


class Loader:
    """Iterates over StepBatches first_step … last_step of one rank; use as a context manager, or `close()` it.

    What goes wrong while reading ahead is raised in the consumer, at the step where it happened. The dataset stays
    open: its owner closes it after the loader.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: Batch,
        *,
        rank: int,
        ranks: int,
        first_step: int,
        last_step: int,
        prefetch_steps: int = 2,
    ) -> None:
        self._dataset = dataset
        self._batch = batch
        self._rank = rank
        self._ranks = ranks
        self._steps = range(first_step, last_step + 1)
        self._prefetch_steps = prefetch_steps
        self._hinted = first_step - 1
        self._ready: deque[list[MicroBatch] | BaseException] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._read_ahead, name="data-loader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[StepBatch]:
        for step in self._steps:
            start = time.perf_counter()
            micro_batches = self._take()
            yield StepBatch(step, micro_batches, time.perf_counter() - start)

    def close(self) -> None:
        """Stop reading ahead, within the time of one micro-batch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self) -> list[MicroBatch]:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            if self._closed:
                raise RuntimeError("the loader is closed")
            found = self._ready.popleft()
            self._changed.notify_all()
        # Raised here, in order: the steps read before the failure are trained on.
        if isinstance(found, BaseException):
            raise found
        return found

    def _read_ahead(self) -> None:
        try:
            for step in self._steps:
                micro_batches = self._read_step(step)
                if not self._put(micro_batches):
                    return
        except BaseException as error:  # raised again in the consumer
            self._put(error)

    def _read_step(self, step: int) -> list[MicroBatch]:
        found = []
        self._prefetch_until(min(step + HINTED_STEPS, self._steps.stop - 1))
        for positions in step_slices(step, self._batch, self._rank, self._ranks):
            if self._closed:
                break
            found.append(read_micro_batch(self._dataset, step, positions, self._batch.micro))
        return found

    def _prefetch_until(self, step: int) -> None:
        """Tell what is read up to `step`, so that remote shards are asked for many ranges at once."""
        for each in range(self._hinted + 1, step + 1):
            for positions in step_slices(each, self._batch, self._rank, self._ranks):
                self._dataset.prefetch(positions.start, positions.stop)
        self._hinted = step

    def _put(self, item: list[MicroBatch] | BaseException) -> bool:
        """False when the loader was closed instead."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._prefetch_steps or self._closed)
            if not self._closed:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._closed
