"""What one attempt works with: everything the loop needs, made once by the worker."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal

from cluster.run.ledger import without_infinities
from configs.errors import CheckpointError
from configs.recipe import Recipe
from data.dataset import Dataset
from data.loader import StepBatch
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.writer import CheckpointWriter
from trainer.engine.engine_protocol import Engine, StepResult
from trainer.metrics.reporter import Reporter
from trainer.rank.context import Context
from trainer.rank.ranks import Ranks
from trainer.step_health.bad_number_policy import NumberWatch, RollBack
from trainer.tasks.task_protocol import Task


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended when no process broke."""

    kind: Literal["finished", "stopped", "data_fault", "resized", "preempted", "rolled_back"]
    step: int
    reason: str = ""

    @property
    def again(self) -> bool:
        """Whether the workers left only to be started again."""
        return self.kind in ("resized", "preempted", "rolled_back")


class Leave(IntEnum):
    """Why the workers leave at a step boundary; rank 0 tells the others by this number."""

    STAY = 0
    SIGNAL = 1
    RESIZE = 2
    PREEMPTION = 3

    def outcome(self, step: int) -> Outcome:
        match self:
            case Leave.RESIZE:
                return Outcome("resized", step, "more workers fit")
            case Leave.PREEMPTION:
                return Outcome("preempted", step, "a node is about to be taken away")
            case _:
                return Outcome("stopped", step, "a signal")


@dataclass
class ResizeWish:
    """More workers are used from a checkpoint on, so that no step is done twice; or from one made for it."""

    since: float | None = None

    def is_due(self, step: int, recipe: Recipe) -> bool:
        """Called at each step boundary once the wish is there."""
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        return step % recipe.checkpoint.every_steps == 0 or now - self.since >= recipe.workers.grow_within_s


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
    numbers: NumberWatch
    header: Callable[[int], Manifest]
    resize_wish: "ResizeWish" = field(default_factory=lambda: ResizeWish())

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

    def leave(self, step: int) -> Leave:
        """Asked on rank 0 only: a file may be seen by one rank a step earlier than by another."""
        if not self.ranks.leads:
            return Leave.STAY
        if self.context.folder.stop_request.exists():
            return Leave.SIGNAL
        wish = self.context.pulse.leave
        if wish == "preemption":
            return Leave.PREEMPTION
        if wish == "resize" and self.resize_wish.is_due(step, self.recipe):
            return Leave.RESIZE
        return Leave.STAY

    def train_step(self, batch: StepBatch, total_weight: float, lr: float) -> StepResult | None:
        """One optimizer step; None where the global batch is left out, as known before or found just now."""
        if batch.step in self.numbers.left_out:
            self.engine.skip_update(lr)
            return None
        gate = self.numbers.gate(total_weight)
        result = self.engine.train_step(batch.micro_batches, batch.step, total_weight, lr, gate)
        self.numbers.trained(batch.step, batch, result, total_weight)
        return None if batch.step in self.numbers.left_out else result

    def save(self, step: int, *, may_skip: bool = True) -> bool:
        """Take a checkpoint of `step`; False when one is still being written and the recipe says to skip then.

        Raises as NumberWatch.check and check_state rather than keep the state after a bad step.
        """
        skips = may_skip and self.recipe.checkpoint.when_busy == "skip"
        if skips and self.ranks.sum([self.writer.busy])[0]:
            self.context.record_once("checkpoint_skipped", step=step)
            return False
        self.numbers.check()
        self.numbers.check_state()
        with self.reporter.saving(step):
            try:
                self.reporter.flush()
            except OSError as problem:  # the lines are kept and written when there is room
                message = f"{self.context.folder.root} cannot be written: {problem.strerror}; free some space"
                self.context.record("warning", message=message)
            metrics = without_infinities(self.reporter.validation_of(step))
            self._tell(self.writer.save(self.engine, replace(self.header(step), metrics=metrics)))
        return True

    def sample(self, step: int) -> str | None:
        """What the validation after `step` shows of the model, where the recipe asks for it.

        On every rank, also below stage 3, which needs them all: rank 0 alone would take as long, while others waited
        in the next sum and looked hung.
        """
        settings = self.recipe.validation
        assert settings is not None
        due = step % (settings.sample_every_steps or settings.every_steps) == 0 or step == self.recipe.run.steps
        return self.engine.sample(settings.sample_tokens) if due and settings.sample_tokens else None

    def check_worth(self, hopeless: bool) -> None:
        """Raises CheckpointError, on every rank, when rank 0 has found that training on is not worth it."""
        if hopeless:
            raise CheckpointError(self.ranks.from_leader(self.writer.hopeless))

    def tell_failed_save(self) -> int:
        """A save failed, here or on another rank: warn, and wait for nobody's part. Training goes on.

        Returns the newest step that needs no saving for sure.
        """
        self.writer.give_up()
        self._tell(self.writer.problem())
        return self.resumed_step

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

    def roll_back(self, cause: RollBack) -> Outcome:
        """Leave with the newest checkpoint published: it is from before the bad step, and may be under way still."""
        self.reporter.phase("going back", cause.step - 1)
        self._tell(self.writer.wait())
        self.ranks.sum([0.0])
        return Outcome("rolled_back", cause.step, str(cause))

    def _clean(self) -> None:
        """Remove what failed checkpoints left, now that no rank is writing."""
        if self.ranks.leads:
            self.writer.clean()
