"""What one attempt works with, made once by build_attempt.py, and how it keeps and leaves its state."""

from dataclasses import dataclass, field, replace

from cluster.run.ledger import without_infinities
from cluster.run.run_events import CheckpointSkipped, Finished, Left, RolledBack, Stopped, Warned
from configs.errors import CheckpointError
from configs.recipe import Recipe
from data.dataset import Dataset
from data.loader import StepBatch
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.writer import CheckpointWriter, SaveStart
from trainer.engine.engine_protocol import Engine, StepResult
from trainer.history.wall_time_spans import PHASES
from trainer.metrics.reporter import Reporter
from trainer.metrics.stopwatch import Stopwatch
from trainer.rank.context import Context
from trainer.rank.ranks import Ranks
from trainer.step_health.bad_number_policy import NumberWatch, RollBack
from trainer.step_health.skipped_samples import SkippedSamples
from trainer.tasks.task_protocol import EngineTask
from trainer.training.outcome import LeaveRequests, Outcome
from trainer.training.resume import header


@dataclass(kw_only=True)
class Attempt:
    """One group of workers training from `resumed_step` on, until the run ends or something stops it.

    `saved_step` is the newest step known to need no saving; all else stays as it was made.
    """

    context: Context
    resumed_step: int
    stop_at: int | None
    task: EngineTask
    engine: Engine
    train_data: Dataset
    val_data: Dataset | None
    writer: CheckpointWriter
    reporter: Reporter
    stopwatch: Stopwatch
    numbers: NumberWatch
    skipped: SkippedSamples
    leave_requests: LeaveRequests
    saved_step: int = field(init=False)

    def __post_init__(self) -> None:
        self.saved_step = self.resumed_step

    @property
    def recipe(self) -> Recipe:
        """Of the run, as this command gave it."""
        return self.context.recipe

    @property
    def ranks(self) -> Ranks:
        """This rank's place among the workers."""
        return self.context.ranks

    @property
    def last_step(self) -> int:
        """The step after which this attempt ends by itself."""
        return max(self.resumed_step, min(self.recipe.run.steps, self.stop_at or self.recipe.run.steps))

    @property
    def planned_outcome(self) -> Outcome:
        """Of an attempt that comes to `last_step`."""
        if self.last_step < self.recipe.run.steps:
            return Outcome(Stopped, self.last_step, f"--stop-at {self.stop_at}")
        return Outcome(Finished, self.last_step)

    def train_step(self, batch: StepBatch, total_weight: float, lr: float) -> StepResult | None:
        """(all ranks) One optimizer step; None where its global batch is left out, known before or found just now."""
        if batch.step in self.numbers.left_out:
            self.engine.skip_update(lr)
            return None
        gate = self.numbers.gate(total_weight)
        result = self.engine.train_step(batch.micro_batches, batch.step, total_weight, lr, gate)
        self.numbers.trained(batch.step, batch, result, total_weight)
        return None if batch.step in self.numbers.left_out else result

    def save(self, step: int, *, may_skip: bool = True) -> bool:
        """(all ranks) Take a checkpoint of `step`; False when the recipe says to skip it while one is being written.

        Raises as NumberWatch.check and check_state rather than keep the state after a bad step.
        """
        skips = may_skip and self.recipe.checkpoint.when_busy == "skip"
        # Summed: rank 0 waits for the shares of all, and one rank may have written its share while another has not.
        if skips and self.ranks.sum([self.writer.busy])[0]:
            self.context.record_once(CheckpointSkipped(step=step))
            return False
        self.numbers.check()
        self.numbers.check_state()
        start = SaveStart.now(self._spent_s())
        with self.stopwatch.phase("checkpoint"):
            self._flush_figures()
            self._tell(self.writer.save(self.engine, self._header(step), start))
        self.saved_step = step
        return True

    def _spent_s(self) -> dict[str, float]:
        return {f"{name}_s": self.stopwatch.seconds(name) for name in PHASES}

    def _flush_figures(self) -> None:
        try:
            self.reporter.flush()
        except OSError as problem:  # the lines are kept and written when there is room
            message = f"{self.context.folder.root} cannot be written: {problem.strerror}; free some space"
            self.context.record(Warned(message=message))

    def _header(self, step: int) -> Manifest:
        known = header(self.context, self.engine, self.train_data.fingerprint, step, self.reporter.targets)
        metrics = without_infinities(self.reporter.validation_of(step))
        return replace(known, numbers=self.numbers.state(), metrics=metrics)

    def check_worth(self, hopeless: bool) -> None:
        """(all ranks) Raises CheckpointError when rank 0 has found that training on is not worth it."""
        if hopeless:
            raise CheckpointError(self.ranks.from_leader(self.writer.hopeless))

    def tell_failed_save(self) -> None:
        """A save failed, here or on another rank: warn, and wait for nobody's part. Training goes on.

        Which save it was, the other ranks do not know: none of this attempt counts as saved any longer.
        """
        self.writer.give_up()
        self._tell(self.writer.problem())
        self.saved_step = self.resumed_step

    def _tell(self, error: CheckpointError | None) -> None:
        if error is not None:
            self.context.record(Warned(message=str(error)))

    def leave(self, step: int) -> None:
        """(all ranks) Return when the checkpoint of `step` is published; raises as `save_last`."""
        self.reporter.phase("saving", step)
        with self.stopwatch.phase("checkpoint"):
            self.save_last(step)
        self.context.record_once(Left.of(step, self._spent_s()))

    def save_last(self, step: int) -> None:
        """(all ranks) See that `step` is saved and published; try twice, then raise CheckpointError on every rank."""
        error: CheckpointError | None = None
        for _ in range(2):
            if step > self.saved_step:
                self.save(step, may_skip=False)
            error = self.writer.wait()
            # Nobody leaves before rank 0 has published: it needs the others' parts, and its process group.
            if not self.ranks.sum([float(error is not None)])[0]:
                self._clean()
                return
            self.saved_step = -1
        self._clean()
        raise error or CheckpointError(f"the checkpoint of step {step} was not written by another rank")

    def roll_back(self, cause: RollBack) -> Outcome:
        """(all ranks) Leave with the newest checkpoint published: it is from before the bad step, maybe under way."""
        self.reporter.phase("going back", cause.step - 1)
        self._tell(self.writer.wait())
        self.ranks.sum([0.0])  # the next attempt resumes from what rank 0 publishes: nobody leaves before
        return Outcome(RolledBack, cause.step, str(cause))

    def _clean(self) -> None:
        """Remove what failed checkpoints left, now that no rank is writing."""
        if self.ranks.leads:
            self.writer.clean()
