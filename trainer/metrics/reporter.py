"""Turns what the loop does into figures, on rank 0: metrics.jsonl, TensorBoard, progress, ledger, audit."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cluster.run.run_events import FirstStep, Left, StepSkipped, Validated, Warned
from configs.errors import StokerError
from data.loader import StepBatch
from trainer.engine.engine_protocol import StepResult
from trainer.engine.hardware import memory_bytes, peak_flops
from trainer.history.goodput import LiveAccount
from trainer.history.timeline import PHASES
from trainer.metrics.full_disk_file import PatientFile
from trainer.metrics.sinks import MetricSink, Progress
from trainer.metrics.stopwatch import Stopwatch
from trainer.rank.context import Context
from trainer.step_health.bad_number_policy import NumberWatch
from trainer.step_health.skipped_samples import SkippedSamples
from trainer.step_health.stragglers import RankTimes, StragglerWatch
from trainer.tasks.task_protocol import Task

__all__ = ["Reporter"]


class Reporter:
    """One per rank; every rank takes part in the sums, rank 0 writes."""

    def __init__(
        self,
        context: Context,
        task: Task,
        device: torch.device,
        progress: Progress,
        sinks: Sequence[MetricSink],
        account: LiveAccount | None,
        audit: PatientFile | None,
        skipped: SkippedSamples,
        numbers: NumberWatch,
        source_counts: Callable[[int], dict[str, int]],
        *,
        targets: int,
    ) -> None:
        """`account` is rank 0's. `targets`: predicted by all ranks until now."""
        self.targets = targets
        self.skipped = skipped
        self._numbers = numbers
        self._source_counts = source_counts
        self._device, self._account = device, account
        self._context, self._recipe, self._ranks, self._task = context, context.recipe, context.ranks, task
        self._progress, self._sinks, self._audit = progress, sinks, audit
        self._validation: dict[str, float] = {}
        self._last_validation: tuple[int, dict[str, float]] = (0, {})
        self._line: dict[str, Any] = {}
        self._result: StepResult | None = None
        self._steps, self._targets, self._own_s = 0, 0.0, 0.0
        self._saves_begun: dict[int, dict[str, Any]] = {}
        self._trained = False
        self._hosts = context.ranks.gather(socket.gethostname())
        self._stragglers = StragglerWatch(self._hosts, context.warn)
        self.watch = Stopwatch()  # the training begins

    def phase(self, name: str, step: int) -> None:
        """What happens now, for whoever watches."""
        self._context.pulse(name, step)
        if self._ranks.leads:
            self._progress.update(name, step=step)

    def stepped(
        self, step: int, batch: StepBatch, result: StepResult | None, total_weight: float, skipped: int, lr: float
    ) -> None:
        """After each step, with None for one that was left out; cheap, without waiting for the device."""
        self.watch.add("data_wait", batch.wait_s)
        self.skipped.trained(step, batch.skipped, skipped)
        if not self._trained:
            self._trained = True
            self._context.record_once(FirstStep(step=step, seconds=self.watch.elapsed_s()))
        if result is not None:  # nothing was computed of one that was left out
            self._steps += 1
            self._own_s += result.own_s
            self._targets += total_weight
            self.targets += round(total_weight)
        self._result = result
        self._line = {"step": step, "lr": lr}
        if result is not None and result.skipped:
            self._context.record_once(StepSkipped(step=step, loss_scale=result.loss_scale))
        if self._audit is not None:
            keys = [key for micro_batch in batch.micro_batches for key in micro_batch.keys]
            left_out = {"left_out": True} if result is None else {}
            self._audit.append((json.dumps({"step": step, "keys": keys, **left_out}) + "\n").encode())

    def validated(self, step: int, figures: Mapping[str, float], skipped: int, text: str | None) -> None:
        self._validation = {f"val_{name}": value for name, value in figures.items()}
        if self._recipe.data.on_error == "skip":
            self._validation["val_skipped"] = skipped
        self._last_validation = (step, self._validation)
        self._context.record_once(Validated(step=step, sample=text, figures=self._validation))
        if text is not None:
            for sink in self._sinks:
                sink.text(step, text)

    def validation_of(self, step: int) -> dict[str, float]:
        """The figures of the validation at this very step; empty when there was none."""
        return self._last_validation[1] if self._last_validation[0] == step else {}

    def log_if_due(self, step: int) -> None:
        """The first and last step of the run, every `monitor.every_steps`, and every validated or left-out one."""
        first_or_last = step in (1, self._recipe.run.steps)
        left_out = self._result is None
        if not (first_or_last or left_out or self._validation or step % self._recipe.monitor.every_steps == 0):
            return
        figures = self._figures()
        times = RankTimes.gather(self._ranks, self._own_s, self.watch.seconds("data_wait"))
        self._stragglers.add(step, times, self.watch.elapsed_s(), self._steps)
        line = {**self._line, **figures}
        line |= {**self._rates(max(times.data_wait_s)), **times.figures(), **self._validation}
        line |= self._data_figures(step)
        if left_out_steps := self._numbers.left_out_to(step):
            line["left_out_steps"] = left_out_steps
        self._validation, self._steps, self._targets, self._own_s = {}, 0, 0.0, 0.0
        self.watch.reset()  # writing the line belongs to the next interval
        if self._ranks.leads:
            line |= {**memory_bytes(self._device), "attempt": self._context.attempt, "time": time.time()}
            line |= self._goodput(line)
            for sink in self._sinks:
                sink.log(line)
            keys = ("loss", "lr", "step_s", "samples_per_s", "tokens_per_s", "val_loss")
            self._progress.update("training", step=step, **{k: line[k] for k in keys if k in line})

    def _figures(self) -> dict[str, Any]:
        """Of the last step. Waits for the device: the interval's time is complete. Raises as NumberWatch.check."""
        if self._result is None:
            return {"left_out": True}  # how it was found differs, and is told in the ledger
        loss, norm = self._numbers.check(), float(self._result.grad_norm)
        return {"loss_scale": self._result.loss_scale, "loss": loss, "grad_norm": norm}

    def _goodput(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._account is not None, "rank 0 has it"
        self._account.add({name: line[f"{name}_s"] for name in PHASES}, line["time"])
        return self._account.figures()

    def _rates(self, wait_s: float) -> dict[str, float]:
        """Of the logging interval that ends now. Seconds are sums over the interval, `step_s` is per step.

        `wait_s`: of the rank that waited longest for data; meanwhile the others waited for it.
        """
        checkpoint_s = self.watch.seconds("checkpoint")
        train_s = max(self.watch.training_s() + self.watch.seconds("data_wait") - wait_s, 1e-9)
        loop_s = train_s + wait_s + checkpoint_s
        batch = self._recipe.batch.global_
        rates = {
            "samples": self._line["step"] * batch,
            "samples_per_s": self._steps * batch / loop_s,
            "step_s": train_s / max(self._steps, 1),
            "data_wait_s": wait_s,
            "checkpoint_s": checkpoint_s,
            "validation_s": self.watch.seconds("validation"),
        }
        flops = self._targets * self._task.flops_per_target() / loop_s
        rates["mfu"] = flops / (peak_flops(self._device, self._recipe.precision) * self._ranks.world)
        if self._task.units == "tokens":
            rates["tokens"] = self.targets
            rates["tokens_per_s"] = self._targets / loop_s
        return rates

    def _data_figures(self, step: int) -> dict[str, Any]:
        """What was used of each source of a mixture, and what was skipped where that is allowed."""
        figures: dict[str, Any] = {}
        counts = self._source_counts(step * self._recipe.batch.global_)
        if len(counts) > 1:
            figures["sources"] = counts
        if self._recipe.data.on_error == "skip":
            figures["skipped"] = self.skipped.total
        return figures

    def fault(self, error: StokerError, step: int) -> None:
        self._context.record_fault(error, step)

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """While a save keeps the loop from training."""
        begun = {"saved_at": time.time(), "background": self._recipe.checkpoint.background, **self._seconds()}
        # The save before may still be on its way; the one before that is not.
        self._saves_begun = {**dict(list(self._saves_begun.items())[-1:]), step: begun}
        with self.watch.phase("checkpoint"):
            yield

    def save_begun(self, step: int) -> dict[str, Any]:
        """When the save of `step` began, and where the time since the last logged line had gone by then."""
        return self._saves_begun[step]

    @contextmanager
    def leaving(self, step: int) -> Iterator[None]:
        """While the last checkpoint is waited for."""
        self.phase("saving", step)
        with self.watch.phase("checkpoint"):
            yield
        self._context.record_once(Left.of(step, self._seconds()))

    def _seconds(self) -> dict[str, float]:
        return {f"{name}_s": self.watch.seconds(name) for name in PHASES}

    def flush(self) -> None:
        """Before a checkpoint: the history on disk is never behind the state on disk."""
        for sink in self._sinks:
            sink.flush()
        if self._audit is not None:
            self._audit.sync()

    def close(self) -> None:
        try:
            self.flush()
        except OSError as error:  # told, but not in the place of what ended the run
            self._context.record(Warned(message=f"the last figures were not written: {error}"))
        for sink in self._sinks:
            sink.close()
        if self._audit is not None:
            self._audit.close()
