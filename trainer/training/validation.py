"""One pass over the validation set, shared out over the workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from configs.errors import DataError
from data.batch import MicroBatch, Slice, eval_slices
from data.dataset import Dataset, read_micro_batch
from data.loader import HINTED_STEPS
from data.source import Skipped
from trainer.training.attempt import Attempt


def validate_if_due(run: Attempt, step: int) -> bool:
    """(all ranks) Every `validation.every_steps` and after the last step of the run. False, on all, after a data fault.

    Raises as NumberWatch.check.
    """
    settings = run.recipe.validation
    if settings is None or run.val_data is None or not settings.every_steps:
        return True
    is_due = step % settings.every_steps == 0 or step == run.recipe.run.steps
    return not is_due or _validate(run, run.val_data, step)


@dataclass
class _Faults:
    """What this rank could not read in one pass."""

    errors: list[DataError] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """What all ranks know of a pass: sums over them."""

    sums: dict[str, float]  # of the task's outputs
    unreadable: bool  # some rank could not read a sample, and knows why
    skipped: int


def _validate(run: Attempt, data: Dataset, step: int) -> bool:
    run.numbers.check()  # (all ranks) weights that are no numbers cannot be sampled from
    run.reporter.phase("validating", step)
    with run.stopwatch.phase("validation"):
        own = _Faults()
        with run.engine.ema_weights():
            whole = _evaluate(run, data, step, own)  # (all ranks)
            # All ranks skip it together: below it runs the model, which at ZeRO stage 3 gathers weights from them all.
            text = None if whole.unreadable else _sample(run, step)  # (all ranks)
        run.skipped.validated(step, own.skipped)
        if not _is_usable(run, step, whole, own.errors):
            return False
    run.reporter.validated(step, run.task.metrics(whole.sums), whole.skipped, text)
    return True


def _evaluate(run: Attempt, data: Dataset, step: int, own: _Faults) -> _Pass:
    """(all ranks) What this rank could not read is added to `own`."""
    assert run.recipe.validation is not None
    count = min(data.count, run.recipe.validation.max_samples or data.count)
    slices = eval_slices(count, run.recipe.batch.micro, run.ranks.rank, run.ranks.world)
    sums = run.engine.evaluate(_readable(run, data, step, slices, own))
    names = sorted(sums)  # the ranks need not have met the outputs in the same order
    *totals, unreadable, skipped = run.ranks.sum([*(sums[n] for n in names), float(bool(own.errors)), len(own.skipped)])
    return _Pass(dict(zip(names, totals, strict=True)), bool(unreadable), int(skipped))


def _readable(run: Attempt, data: Dataset, step: int, slices: list[Slice], own: _Faults) -> Iterator[MicroBatch]:
    """The micro-batches, blank where one cannot be read: the ranks must go on together until they have agreed."""
    micro = run.recipe.batch.micro
    for number, part in enumerate(slices):
        for later in slices[number : number + HINTED_STEPS]:
            data.prefetch(later.start, later.stop)
        try:
            batch = read_micro_batch(data, step, part, micro)
        except DataError as error:
            own.errors.append(error)
            batch = read_micro_batch(data, step, Slice(part.micro, 0, 0), micro)
        own.skipped += batch.skipped
        yield batch


def _sample(run: Attempt, step: int) -> str | None:
    """(all ranks) What the validation after `step` shows of the model, where the recipe asks for it.

    Also below ZeRO stage 3, which needs them all: rank 0 alone would take as long, while others waited in the next sum
    and looked hung.
    """
    settings = run.recipe.validation
    assert settings is not None
    due = step % (settings.sample_every_steps or settings.every_steps) == 0 or step == run.recipe.run.steps
    return run.engine.sample(settings.sample_tokens) if due and settings.sample_tokens else None


def _is_usable(run: Attempt, step: int, whole: _Pass, errors: list[DataError]) -> bool:
    """The same on every rank. Of a fault, the ranks that know it tell the ledger."""
    if whole.unreadable:
        for error in errors[:1]:
            run.context.record_fault(error, step)
        return False
    refusal = run.skipped.validation_refusal(step, whole.skipped, whole.sums["weight"])
    if refusal is None:
        return True
    if run.ranks.leads:  # every rank has the same refusal, and the ledger needs it once
        run.context.record_fault(refusal, step)
    return False
