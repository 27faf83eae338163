"""Bad numbers in a run: finds the step, tells its samples, and stops, leaves the global batch out, or goes back.

A left-out step makes no update; steps, samples and the learning rate go on by position. Which steps are left out is
state of the run: the ledger and every later checkpoint have it, so that no resume, on any layout, judges them anew.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cluster.run.run_events import BadNumberFound
from configs.errors import BadStepError, LossSpikeError, NonFiniteError
from data.loader import StepBatch
from trainer.engine.engine_protocol import Admit, StepResult
from trainer.rank.context import Context
from trainer.step_health.bad_numbers import BadNumber, LossWindow, left_out_batches

__all__ = ["NumberWatch", "RollBack"]


class RollBack(Exception):  # noqa: N818
    """Raised on every rank: this attempt is to end, and another to begin from the newest checkpoint."""

    def __init__(self, step: int, bad: BadNumber) -> None:
        super().__init__(str(bad))
        self.step = step


@dataclass
class _Trained:
    """The last step that was computed; `loss` is over all workers, None until they have summed it."""

    step: int
    result: StepResult
    weight: float
    keys: list[list[str]]
    loss: float | None = None
    sound: bool = False  # the state after it is known to hold numbers only

    @property
    def share(self) -> float:
        """This rank's part of the loss; waits for the device."""
        return float(self.result.loss_sum / self.weight)


class NumberWatch:
    """One per rank; every rank sees the same numbers and does the same."""

    def __init__(self, context: Context, stored: Mapping[str, Any], not_finite: Callable[[], str | None]) -> None:
        """`stored`: `state()` at the checkpoint that was resumed; the ledger tells what was left out after it.

        `not_finite`: what of this rank's part of the state is no number, if anything.
        """
        self._not_finite = not_finite
        self._context, self._ranks, self._settings = context, context.ranks, context.recipe.bad_numbers
        self._causes = context.ranks.from_leader(left_out_batches(context.ledger.events()))
        self.left_out = {*self._causes, *stored.get("left_out", ())}
        self._window = LossWindow.of(self._settings.spike, stored.get("losses", ()))
        # With neither, only what is logged or saved is looked at, and nothing waits for the device in between.
        self._every_step = self._settings.policy != "stop" or self._settings.spike is not None
        self._last: _Trained | None = None
        self._admitted: float | None = None

    def state(self) -> dict[str, Any]:
        """For the manifest."""
        return {"left_out": sorted(self.left_out), "losses": list(self._window.losses)}

    def left_out_to(self, step: int) -> int:
        """How many of the steps up to `step` made no update."""
        return sum(each <= step for each in self.left_out)

    def gate(self, weight: float) -> Admit | None:
        """With skip_batch: decides, before the update, on the loss over all workers."""
        if self._settings.policy != "skip_batch":
            return None

        def admits(loss_sum: torch.Tensor) -> bool:
            self._admitted = loss = self._ranks.sum([float(loss_sum / weight)])[0]
            return self._window.judge(loss) is None

        return admits

    def trained(self, step: int, batch: StepBatch, result: StepResult, weight: float) -> None:
        """After each step that was computed; cheap, without waiting for the device unless there was a gate.

        Raises as `check` where the engine made no update, which no later number would show.
        """
        self._last = _Trained(step, result, weight, [part.keys for part in batch.micro_batches])
        if self._admitted is not None:
            self._judge(self._last, self._admitted)
            self._admitted = None
        elif result.dropped:
            self.check()

    def share(self) -> tuple[float, float]:
        """What this rank adds to the loop's next agreement where every step is judged: its part of the last loss.

        And 1 if its part of the state is broken.
        """
        last = self._last
        if last is None or not self._every_step:
            return 0.0, 0.0
        return last.share if last.loss is None else 0.0, 0.0 if last.sound else self._broken()

    def settle(self, loss: float, broken: float) -> None:
        """The sums of all ranks' `share`. Raises as `check` and `check_state`."""
        if self._last is None or not self._every_step:
            return
        if self._last.loss is None:
            self._judge(self._last, loss)
        self._judge_state(self._last, broken)

    def check_state(self) -> None:
        """Before a save: what is no number is never kept in the place of what is. Raises as `check`."""
        if self._last is not None and not self._last.sound:
            self._judge_state(self._last, self._ranks.sum([self._broken()])[0])

    def _broken(self) -> float:
        return float(self._not_finite() is not None)

    def check(self) -> float:
        """The last computed step's loss over all workers; 0 before the first.

        Raises RollBack, or NonFiniteError or LossSpikeError, on every rank, when the step is bad.
        """
        if self._last is None:
            return 0.0
        if self._last.loss is None:
            self._judge(self._last, self._ranks.sum([self._last.share])[0])
        assert self._last.loss is not None
        return self._last.loss

    def _judge(self, last: _Trained, loss: float) -> None:
        last.loss = loss
        skipped = last.result.skipped  # gradients that overflow fp16 are the loss scaler's business
        bad = self._window.judge(loss, 0.0 if skipped else float(last.result.grad_norm))
        if bad is None:
            if not skipped:
                self._window.accept(loss)
            return
        row = last.result.overflows_in_a_row
        if bad.cause == "gradient" and row >= self._context.recipe.loss_scale.max_skipped_steps:
            bad = BadNumber("overflows", row)
        goes_back = self._settings.policy == "rollback"
        skips = self._settings.policy == "skip_batch" and last.result.dropped
        self._act(last, bad, leaves_out=goes_back or skips, goes_back=goes_back)

    def _judge_state(self, last: _Trained, broken: float) -> None:
        last.sound = not broken
        if broken:
            what = next(found for found in self._ranks.gather(self._not_finite()) if found is not None)
            # The update is made: with skip_batch too there is no other way back, and it ends in the same bits.
            goes_back = self._settings.policy != "stop"
            self._act(last, BadNumber("state", math.nan, what=what), leaves_out=goes_back, goes_back=goes_back)

    def _act(self, last: _Trained, bad: BadNumber, *, leaves_out: bool, goes_back: bool) -> None:
        refused = leaves_out and len(self.left_out) >= self._settings.max_events
        self._record(last, bad, left_out=leaves_out and not refused)
        if not leaves_out or refused:
            raise self._error(last.step, bad)
        self.left_out.add(last.step)
        self._causes[last.step] = str(bad)
        count = f"{len(self.left_out)} of at most {self._settings.max_events}"
        back = ", going back to the newest checkpoint" if goes_back else ""
        self._context.warn(f"{bad} at step {last.step}: its global batch is left out ({count}){back}")
        if goes_back:
            raise RollBack(last.step, bad)

    def _record(self, last: _Trained, bad: BadNumber, *, left_out: bool) -> None:
        own = [key for keys in last.keys for key in keys]
        keys = [key for each in self._ranks.gather(own) for key in each]  # ranks hold consecutive samples
        if self._ranks.leads:
            # Straight to the ledger, an error and all: what is not on record would come again after going back.
            event = BadNumberFound(
                attempt=self._context.attempt,
                invocation=self._context.invocation,
                step=last.step,
                cause=bad.cause,
                value=bad.value if math.isfinite(bad.value) else str(bad.value),
                limit=bad.limit,
                message=str(bad),
                policy=self._settings.policy,
                left_out=left_out,
                keys=keys,
            )
            self._context.ledger.append(event)

    def _scale(self) -> str:
        if self._last is None or self._context.recipe.precision != "fp16":
            return ""
        return f" (fp16, loss scale {self._last.result.loss_scale:g})"

    def _error(self, step: int, bad: BadNumber) -> BadStepError:
        kind = LossSpikeError if bad.cause == "spike" else NonFiniteError
        told, most = f"{bad} at step {step}{self._scale()}", self._settings.max_events
        way_on = "to go on without such batches set bad_numbers.policy"
        if self._settings.policy != "stop" and self.left_out:
            first = min(self._causes, default=min(self.left_out))
            told = (
                f"more global batches are bad than bad_numbers.max_events {most}; the first: "
                f"{self._causes.get(first, 'a bad number')} at step {first}; now {told}"
            )
            way_on = "to leave out more raise bad_numbers.max_events"
        message = (
            f"{told}: its samples are in {self._context.folder.ledger} ({BadNumberFound.event}); {way_on}, or start a "
            "new run with a lower optimizer.lr, a longer schedule.warmup_steps or a lower optimizer.grad_clip"
        )
        return kind(message, step)
