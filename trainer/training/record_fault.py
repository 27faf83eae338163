"""The ledger's word of what went wrong on this rank."""

import socket

from cluster.run.faults import is_echo
from configs.errors import BadStepError, DataError, StokerError
from trainer.rank.context import Context


def record_fault(context: Context, error: Exception) -> None:
    """Of an exception that ends this process. `final` tells the driver not to try again: it would only come again."""
    bad_step = error.step if isinstance(error, BadStepError) else None
    context.record(
        "fault",
        kind=type(error).__name__,
        message=str(error),
        rank=context.ranks.rank,
        host=socket.gethostname(),
        step=context.pulse.step if bad_step is None else bad_step,
        phase=context.pulse.phase,
        final=isinstance(error, StokerError),
        echo=not isinstance(error, StokerError) and is_echo(error),
        exit_code=error.exit_code if isinstance(error, StokerError) else 1,
        log=_log(context),
    )


def record_data_fault(context: Context, error: DataError, step: int) -> None:
    """Of data that cannot be used after `step`: the ranks leave together, so no process ends by it. Always final."""
    context.record(
        "fault",
        kind=type(error).__name__,
        message=str(error),
        rank=context.ranks.rank,
        host=socket.gethostname(),
        step=step,
        phase=context.pulse.phase,
        log=_log(context),
        exit_code=error.exit_code,
        final=True,
    )


def _log(context: Context) -> str:
    return str(context.folder.log(context.attempt, context.ranks.rank))
