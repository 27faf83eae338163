"""The training loop: data in, agreement, step, validation, figures, checkpoint.

"(all ranks)" stands where ranks sum, gather or broadcast. Each of them must come to the same of these lines in the same
order: one that left the loop, or took another branch, would keep the others waiting in their next all-reduce until the
hang rule ends the attempt. So every branch of the loop goes by the step's number, the recipe or an Agreement.
"""

from collections.abc import Iterator

from cluster.run.run_events import DataFault
from configs.errors import DataError
from data.loader import Loader, StepBatch
from trainer.training.agreement import Agreement
from trainer.training.attempt import Attempt
from trainer.training.lr_schedule import learning_rate
from trainer.training.outcome import Outcome
from trainer.training.validation import validate_if_due


def train(run: Attempt) -> Outcome:
    """(all ranks) Train from the step after `run.resumed_step`, and save; the same outcome on every rank.

    Raises RollBack, BadStepError or CheckpointError, on every rank.
    """
    with _loader(run) as loader:
        outcome = _train_steps(run, iter(loader))
    run.leave(outcome.step)  # (all ranks)
    return outcome


def _train_steps(run: Attempt, batches: Iterator[StepBatch]) -> Outcome:
    for step in range(run.resumed_step + 1, run.last_step + 1):
        batch = _read(run, step, batches)
        agreed = _agree(run, step, batch)  # (all ranks)
        _settle_step_before(run, agreed)  # (all ranks)
        # The same answer on every rank: one that stayed would wait in the step's all-reduce for those that left.
        if outcome := _reason_to_leave(run, step, batch, agreed):
            return outcome
        assert isinstance(batch, StepBatch)  # else this rank's share of the agreement was `unreadable`
        _take_step(run, batch, agreed)  # (all ranks)
        is_valid = validate_if_due(run, step)  # (all ranks)
        run.reporter.log_if_due(step)  # (all ranks) also of a step whose validation failed: it was trained
        if not is_valid:  # as agreed in the validation's sum: one that went on would wait in the next agreement
            return Outcome(DataFault, step, "a data fault in validation")
        _save_if_due(run, step)  # (all ranks)
    return run.planned_outcome


def _loader(run: Attempt) -> Loader:
    return Loader(
        run.train_data,
        run.recipe.batch,
        rank=run.ranks.rank,
        ranks=run.ranks.world,
        first_step=run.resumed_step + 1,
        last_step=run.last_step,
    )


def _read(run: Attempt, step: int, batches: Iterator[StepBatch]) -> StepBatch | DataError:
    """This rank's part of the global batch of `step`, or why it cannot be had: no rank leaves before all know."""
    run.reporter.phase("training", step - 1)
    run.context.activity("reading data")
    try:
        return next(batches)
    except DataError as error:
        return error


def _agree(run: Attempt, step: int, batch: StepBatch | DataError) -> Agreement:
    """(all ranks) Before the step, so that a fault of one rank finds all of them where they may leave."""
    run.context.activity("agreement")
    read = batch if isinstance(batch, StepBatch) else None
    leave = run.leave_requests.at(step - 1)
    save_failed, hopeless = run.writer.failed, run.ranks.leads and run.writer.hopeless is not None
    # Last: where every step is judged, it waits for the device, and all above is done meanwhile.
    loss, broken = run.numbers.share()
    own = Agreement(
        targets=float(sum(part.targets for part in read.micro_batches)) if read else 0.0,
        skipped_samples=len(read.skipped) if read else 0,
        leave=leave,
        unreadable=read is None,
        save_failed=save_failed,
        hopeless=hopeless,
        previous_loss=loss,
        previous_broken=bool(broken),
    )
    return own.sum_over(run.ranks)


def _settle_step_before(run: Attempt, agreed: Agreement) -> None:
    """(all ranks) Raises, on every rank alike, what ends the attempt: RollBack, BadStepError or CheckpointError."""
    run.numbers.settle(agreed.previous_loss, agreed.previous_broken)
    if agreed.save_failed:
        run.tell_failed_save()
    run.check_worth(agreed.hopeless)


def _reason_to_leave(run: Attempt, step: int, batch: StepBatch | DataError, agreed: Agreement) -> Outcome | None:
    """Why the workers leave without taking `step`, if they do: the same on every rank."""
    if agreed.unreadable:
        if isinstance(batch, DataError):
            run.context.record_fault(batch, step - 1)
        return Outcome(DataFault, step - 1, "a data fault")
    refusal = run.skipped.refusal(step, agreed.skipped_samples, agreed.targets)
    if refusal is not None:
        run.skipped.tell(step, batch.skipped if isinstance(batch, StepBatch) else [])
        if run.ranks.leads:  # every rank has the same refusal, and the ledger needs it once
            run.context.record_fault(refusal, step - 1)
        return Outcome(DataFault, step - 1, "a data fault")
    return agreed.leave.outcome(step - 1) if agreed.leave else None


def _take_step(run: Attempt, batch: StepBatch, agreed: Agreement) -> None:
    """(all ranks) Forward, backward, all-reduce of gradients, update."""
    step = batch.step
    lr = learning_rate(run.recipe.schedule, run.recipe.optimizer.lr, step, run.recipe.run.steps)
    result = run.train_step(batch, agreed.targets, lr)
    run.skipped.trained(step, batch.skipped, agreed.skipped_samples)
    run.reporter.stepped(step, batch, result, agreed.targets, lr)


def _save_if_due(run: Attempt, step: int) -> None:
    """(all ranks) The last step is saved by `Attempt.leave`, which waits until it is published."""
    if step % run.recipe.checkpoint.every_steps == 0 and step < run.last_step:
        run.reporter.phase("saving", step)
        run.save(step)
