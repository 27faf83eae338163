"""What one attempt works with: everything the loop needs, made once by the worker."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from configs.errors import CheckpointError
from configs.recipe import Recipe
from data.dataset import Dataset
from trainer.checkpoint_format import Manifest
from trainer.checkpoint_writer import CheckpointWriter
from trainer.context import Context
from trainer.engine import Engine
from trainer.ranks import Ranks
from trainer.reporter import Reporter
from trainer.tasks.base import Task


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended when no process broke."""

    kind: Literal["finished", "stopped", "data_fault"]
    step: int
    reason: str = ""


@dataclass(frozen=True)
class Attempt:
    """One group of workers training from `resumed_step` on, until the run ends or something stops it."""

    context: Context
    resumed_step: int
    stop_at: int | None
    task: Task
    engine: Engine
    train_data: Dataset
    val_data: Dataset | None
    writer: CheckpointWriter
    reporter: Reporter
    header: Callable[[int], Manifest]

    @property
    def recipe(self) -> Recipe:
        return self.context.recipe

    @property
    def ranks(self) -> Ranks:
        return self.context.ranks

    @property
    def last_step(self) -> int:
        """The step after which this attempt ends by itself."""
        return max(self.resumed_step, min(self.recipe.run.steps, self.stop_at or self.recipe.run.steps))

    def stop_requested(self) -> bool:
        """Asked on rank 0 only: a file may be seen by one rank a step earlier than by another."""
        return self.ranks.leads and self.context.folder.stop_request.exists()

    def save(self, step: int, *, may_skip: bool = True) -> bool:
        """Take a checkpoint of `step`; False when one is still being written and the recipe says to skip then.

        Raises NonFiniteError rather than keep weights that are worth nothing.
        """
        skips = may_skip and self.recipe.checkpoint.when_busy == "skip"
        if skips and self.ranks.sum([self.writer.busy])[0]:
            self.context.record_once("checkpoint_skipped", step=step)
            return False
        self.reporter.finite_loss(step)
        try:
            self.reporter.flush()
        except OSError as problem:  # the lines are kept and written when there is room
            message = f"{self.context.folder.root} cannot be written: {problem.strerror}; free some space"
            self.context.record("warning", message=message)
        metrics = self.reporter.validation_of(step)
        self._tell(self.writer.save(self.engine, replace(self.header(step), metrics=metrics)))
        return True

    def tell_failed_save(self) -> None:
        """A save failed, here or on another rank: warn, and wait for nobody's part. Training goes on."""
        self.writer.give_up()
        self._tell(self.writer.problem())

    def _tell(self, error: CheckpointError | None) -> None:
        if error is not None:
            self.context.record("warning", message=str(error))

    def save_last(self, step: int, saved: int) -> None:
        """Return when the checkpoint of `step` is published; try twice, then raise CheckpointError on every rank."""
        error: CheckpointError | None = None
        for _ in range(2):
            if step > saved:
                self.save(step, may_skip=False)
            error = self.writer.wait()
            # Nobody leaves before rank 0 has published.
            if not self.ranks.sum([float(error is not None)])[0]:
                self._clean()
                return
            saved = -1
        self._clean()
        raise error or CheckpointError(f"the checkpoint of step {step} was not written by another rank")

    def _clean(self) -> None:
        """Remove what failed checkpoints left, now that no rank is writing."""
        if self.ranks.leads:
            self.writer.clean()
