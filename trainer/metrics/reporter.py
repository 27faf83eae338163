"""Gathers what all ranks know of a step into one line of figures, and tells the ledger what only happens at times."""

import socket
from collections.abc import Callable, Mapping
from typing import Any

from cluster.run.run_events import FirstStep, StepSkipped, Validated
from data.loader import StepBatch
from trainer.engine.engine_protocol import StepResult
from trainer.metrics.interval import Interval, StepCounts, Workload
from trainer.metrics.outputs import Outputs
from trainer.metrics.stopwatch import Stopwatch
from trainer.rank.context import Context
from trainer.step_health.bad_number_policy import NumberWatch
from trainer.step_health.skipped_samples import SkippedSamples
from trainer.step_health.stragglers import RankTimes, StragglerWatch

__all__ = ["Reporter"]


class Reporter:
    """One per rank; every rank takes part in the sums, rank 0 writes."""

    def __init__(
        self,
        context: Context,
        workload: Workload,
        outputs: Outputs,
        stopwatch: Stopwatch,
        numbers: NumberWatch,
        skipped: SkippedSamples,
        source_counts: Callable[[int], dict[str, int]],
        *,
        targets: int,
    ) -> None:
        """(all ranks) `source_counts`: samples of each source up to a position. `targets`: predicted by all until now.

        `stopwatch` starts anew: the first interval begins when every rank is here.
        """
        self.targets = targets
        self._context, self._recipe, self._ranks = context, context.recipe, context.ranks
        self._workload, self._outputs, self._stopwatch = workload, outputs, stopwatch
        self._numbers, self._skipped, self._source_counts = numbers, skipped, source_counts
        self._validation: dict[str, float] = {}
        self._last_validation: tuple[int, dict[str, float]] = (0, {})
        self._lr = 0.0
        self._result: StepResult | None = None
        self._counts = StepCounts()
        self._trained = False
        self._stragglers = StragglerWatch(context.ranks.gather(socket.gethostname()), context.warn)
        stopwatch.reset()

    def phase(self, name: str, step: int) -> None:
        """What happens now, for whoever watches: the hang rule by the activity, people by progress.json."""
        self._context.activity(name, step)
        self._outputs.phase(name, step)

    def stepped(self, step: int, batch: StepBatch, result: StepResult | None, total_weight: float, lr: float) -> None:
        """After each step, with None for one that was left out; cheap, without waiting for the device."""
        self._stopwatch.add("data_wait", batch.wait_s)
        if not self._trained:
            self._trained = True
            self._context.record_once(FirstStep(step=step, seconds=self._stopwatch.elapsed_s()))
        if result is not None:
            self._counts.add(total_weight, result.own_s)
            self.targets += round(total_weight)
        self._result, self._lr = result, lr
        if result is not None and result.skipped:
            self._context.record_once(StepSkipped(step=step, loss_scale=result.loss_scale))
        self._outputs.audit(batch, left_out=result is None)

    def validated(self, step: int, figures: Mapping[str, float], skipped: int, text: str | None) -> None:
        """The means over the validation set; they go into the line of the same step."""
        self._validation = {f"val_{name}": value for name, value in figures.items()}
        if self._recipe.data.on_error == "skip":
            self._validation["val_skipped"] = skipped
        self._last_validation = (step, self._validation)
        self._context.record_once(Validated(step=step, sample=text, figures=self._validation))
        if text is not None:
            self._outputs.text(step, text)

    def validation_of(self, step: int) -> dict[str, float]:
        """The figures of the validation at this very step; empty when there was none."""
        return self._last_validation[1] if self._last_validation[0] == step else {}

    def log_if_due(self, step: int) -> None:
        """(all ranks) The first and last step of the run, every `monitor.every_steps`, validated and left-out ones.

        Raises as NumberWatch.check.
        """
        # Every rank gives the same answer, from the recipe and what was agreed: the sums below need them all.
        first_or_last = step in (1, self._recipe.run.steps)
        left_out = self._result is None
        if first_or_last or left_out or self._validation or step % self._recipe.monitor.every_steps == 0:
            self._log(step)

    def _log(self, step: int) -> None:
        figures = self._figures()  # (all ranks)
        own_s, data_wait_s = self._counts.own_s, self._stopwatch.seconds("data_wait")
        times = RankTimes.gather(self._ranks, own_s, data_wait_s)  # (all ranks)
        self._stragglers.add(step, times, self._stopwatch.elapsed_s(), self._counts.steps)
        interval = self._interval().figures(self._workload, step, self.targets, max(times.data_wait_s))
        line = {"step": step, "lr": self._lr, **figures, **interval}
        line |= {**times.figures(), **self._validation, **self._data_figures(step)}
        if left_out_steps := self._numbers.left_out_to(step):
            line["left_out_steps"] = left_out_steps
        self._validation, self._counts = {}, StepCounts()
        self._stopwatch.reset()  # before the line is written: that time belongs to the next interval
        self._outputs.log(line)

    def _figures(self) -> dict[str, Any]:
        """(all ranks) Of the last step. Waits for the device: only then is the interval's time complete."""
        if self._result is None:
            return {"left_out": True}  # how it was found differs, and is told in the ledger
        loss, norm = self._numbers.check(), float(self._result.grad_norm)
        return {"loss_scale": self._result.loss_scale, "loss": loss, "grad_norm": norm}

    def _interval(self) -> Interval:
        watch = self._stopwatch
        return Interval(
            counts=self._counts,
            checkpoint_s=watch.seconds("checkpoint"),
            training_s=watch.training_s(),
            data_wait_s=watch.seconds("data_wait"),
            validation_s=watch.seconds("validation"),
        )

    def _data_figures(self, step: int) -> dict[str, Any]:
        """What was used of each source of a mixture, and what was skipped where that is allowed."""
        figures: dict[str, Any] = {}
        counts = self._source_counts(step * self._recipe.batch.global_)
        if len(counts) > 1:
            figures["sources"] = counts
        if self._recipe.data.on_error == "skip":
            figures["skipped"] = self._skipped.total
        return figures

    def flush(self) -> None:
        """Before a checkpoint: the history on disk is never behind the state on disk. Raises OSError on a full disk."""
        self._outputs.flush()

    def close(self) -> None:
        """When the attempt ends, however it does."""
        self._outputs.close()
