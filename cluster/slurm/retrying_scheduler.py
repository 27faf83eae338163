"""Asks Slurm again while its controller is away: it fails over, or is overloaded by what preempts this very job."""

import re
import time
from collections.abc import Callable, Sequence

from cluster.slurm.scheduler import CommandResult, NoAnswerError, SlurmCommands, run_command

__all__ = ["retrying_commands"]


RETRY_S = 900.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0  # between two tries
# Slurm's words (src/common/slurm_errno.c) for what another try may mend.
_AWAY = re.compile(
    r"unable to contact|not responding|timed out|connection|zero bytes|communication|standby|transitional|try again"
    r"|temporarily|host is down",
    re.IGNORECASE,
)

Execute = Callable[..., CommandResult]


def with_retries(execute: Execute, say: Callable[[str], None], retry_s: float = RETRY_S) -> Execute:
    """`execute` that does not give up before `retry_s` while Slurm is away; other failures come at once."""

    def ask(command: Sequence[str], text: str = "") -> CommandResult:
        deadline, pause_s = time.monotonic() + retry_s, _FIRST_PAUSE_S
        while True:
            failure: NoAnswerError | CommandResult
            try:
                failure = execute(command, text)
                if failure.status == 0 or not _AWAY.search(failure.err + failure.out):
                    return failure
            except NoAnswerError as error:
                failure = error
            if time.monotonic() + pause_s > deadline:
                if isinstance(failure, NoAnswerError):
                    raise failure
                return failure
            if pause_s == _FIRST_PAUSE_S:
                say(f"{command[0]} had no answer from Slurm's controller: asking again for {retry_s:.0f} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    return ask


def retrying_commands(say: Callable[[str], None]) -> SlurmCommands:
    """Slurm's commands for a job, which would be lost if it gave up."""
    return SlurmCommands(with_retries(run_command, say))
