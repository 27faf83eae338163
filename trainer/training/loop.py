"""The training loop: data in, steps, validation, figures, checkpoints; and how the workers agree to leave."""

from collections.abc import Iterator

from configs.errors import DataError
from data.batch import MicroBatch, Slice, eval_slices
from data.dataset import Dataset, read_micro_batch
from data.loader import HINTED_STEPS, Loader, StepBatch
from data.source import Skipped
from trainer.training.attempt import Attempt, Leave, Outcome
from trainer.training.lr_schedule import learning_rate


def train(run: Attempt) -> Outcome:
    """Train from the step after `run.resumed_step`. Every rank returns the same outcome, or raises RollBack."""
    recipe, step, saved = run.recipe, run.resumed_step, run.resumed_step
    outcome = Outcome("finished", run.last_step)
    if run.last_step < recipe.run.steps:
        outcome = Outcome("stopped", run.last_step, f"--stop-at {run.stop_at}")
    with _loader(run) as loader:
        batches = iter(loader)
        while step < run.last_step:
            run.reporter.phase("training", step)
            run.context.pulse("reading data")
            batch, fault = _next(batches)
            run.context.pulse("agreement")
            total_weight, skipped, stops, faults, failed, hopeless, loss, broken = run.ranks.sum(
                [
                    _weight(batch),
                    len(batch.skipped) if batch else 0,
                    run.leave(step),
                    batch is None,
                    run.writer.failed,
                    run.ranks.leads and run.writer.hopeless is not None,
                    *run.numbers.share(),
                ]
            )
            run.numbers.settle(loss, broken)  # of the step before
            if failed:
                saved = run.tell_failed_save()
            run.check_worth(bool(hopeless))
            refusal = None if faults else run.reporter.skipped.refusal(step + 1, int(skipped), total_weight)
            if faults or refusal:
                outcome = _leave(run, step, fault, refusal, batch)
                break
            if stops:
                outcome = Leave(int(stops)).outcome(step)
                break
            assert batch is not None  # or this rank would have told of a fault
            step += 1
            lr = learning_rate(recipe.schedule, recipe.optimizer.lr, step, recipe.run.steps)
            result = run.train_step(batch, total_weight, lr)
            run.reporter.stepped(step, batch, result, total_weight, int(skipped), lr)
            valid = run.val_data is None or not _validates(run, step) or validate(run, run.val_data, step)
            run.reporter.log_if_due(step)
            if not valid:
                outcome = Outcome("data_fault", step, "a data fault in validation")
                break
            if step % recipe.checkpoint.every_steps == 0 and step < run.last_step:
                run.reporter.phase("saving", step)
                saved = step if run.save(step) else saved
    with run.reporter.leaving(step):
        run.save_last(step, saved)
    return outcome


def validate(run: Attempt, data: Dataset, step: int) -> bool:
    """One pass over the validation set, shared out over the workers. False, on every rank, after a data fault."""
    assert run.recipe.validation is not None
    micro, faults = run.recipe.batch.micro, list[DataError]()
    run.numbers.check()  # weights that are no numbers cannot be sampled from
    run.reporter.phase("validating", step)
    with run.reporter.watch.phase("validation"):
        count = min(data.count, run.recipe.validation.max_samples or data.count)
        slices = eval_slices(count, micro, run.ranks.rank, run.ranks.world)
        with run.engine.ema_weights():
            skipped = list[Skipped]()
            sums = run.engine.evaluate(_readable(run, data, step, slices, faults, skipped))
            names = sorted(sums)
            *totals, faulty, left_out = run.ranks.sum([*(sums[n] for n in names), float(bool(faults)), len(skipped)])
            text = None if faulty else run.sample(step)
        run.reporter.skipped.validated(step, skipped)
        means = dict(zip(names, totals, strict=True))
        refusal = None if faulty else run.reporter.skipped.validation_refusal(step, int(left_out), means["weight"])
        if refusal is not None and run.ranks.leads:  # every rank knows it
            faults.append(refusal)
        if faulty or refusal:
            for fault in faults[:1]:
                run.reporter.fault(fault, step)
            return False
    run.reporter.validated(step, run.task.metrics(means), int(left_out), text)
    return True


def _readable(
    run: Attempt, data: Dataset, step: int, slices: list[Slice], faults: list[DataError], skipped: list[Skipped]
) -> Iterator[MicroBatch]:
    """The micro-batches, blank where one cannot be read: the ranks must go on together until they have agreed."""
    micro = run.recipe.batch.micro
    for number, part in enumerate(slices):
        for later in slices[number : number + HINTED_STEPS]:
            data.prefetch(later.start, later.stop)
        try:
            batch = read_micro_batch(data, step, part, micro)
        except DataError as error:
            faults.append(error)
            batch = read_micro_batch(data, step, Slice(part.micro, 0, 0), micro)
        skipped += batch.skipped
        yield batch


def _loader(run: Attempt) -> Loader:
    return Loader(
        run.train_data,
        run.recipe.batch,
        rank=run.ranks.rank,
        ranks=run.ranks.world,
        first_step=run.resumed_step + 1,
        last_step=run.last_step,
    )


def _next(batches: Iterator[StepBatch]) -> tuple[StepBatch | None, DataError | None]:
    """This rank's part of the next global batch, or why it cannot be had: told to the others before anyone leaves."""
    try:
        return next(batches), None
    except DataError as error:
        return None, error


def _weight(batch: StepBatch | None) -> float:
    return float(sum(b.targets for b in batch.micro_batches)) if batch else 0.0


def _leave(
    run: Attempt, step: int, fault: DataError | None, refusal: DataError | None, batch: StepBatch | None
) -> Outcome:
    """A shard or sample cannot be used: keep what was trained, and let the rank that knows tell why."""
    if refusal is not None:
        run.reporter.skipped.tell(step + 1, batch.skipped if batch else [])
        fault = refusal if run.ranks.leads else None  # every rank knows it
    if fault is not None:
        run.reporter.fault(fault, step)
    return Outcome("data_fault", step, "a data fault")


def _validates(run: Attempt, step: int) -> bool:
    every = run.recipe.validation.every_steps if run.recipe.validation else 0
    return bool(every) and (step % every == 0 or step == run.recipe.run.steps)
