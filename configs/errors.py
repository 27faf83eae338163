"""Errors that users see: one class per kind, each with the exit code that scripts rely on."""

__all__ = [
    "EXIT_DONE",
    "EXIT_FAILED",
    "EXIT_REQUEUE",
    "EXIT_USER",
    "BadStepError",
    "CheckpointError",
    "ClusterError",
    "DamagedCheckpointError",
    "DamagedDataError",
    "DataError",
    "EngineError",
    "ExportError",
    "LossSpikeError",
    "NonFiniteError",
    "RecipeError",
    "ResourceError",
    "RunFolderError",
    "StokerError",
    "SupersededError",
    "UnfitHostError",
    "UserCodeError",
    "WorkerError",
    "WorkersLeftError",
    "first_line",
]


EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_REQUEUE = 75  # BSD's EX_TEMPFAIL: stopped by a signal with a checkpoint saved


class StokerError(Exception):
    """A failure with a message fit for the user: what was found, where, what was expected, what to do."""

    exit_code = EXIT_FAILED


class UserError(StokerError):
    """The user's mistake: shown as one line, never with a traceback."""

    exit_code = EXIT_USER


class RecipeError(UserError):
    """The recipe or an override is wrong."""


class UserCodeError(UserError):
    """An error in a Python file of the user's own; the message has its line."""


class DataError(UserError):
    """A shard or a sample is missing, damaged, or not what the recipe says."""


class DamagedDataError(DataError):
    """A sample, or a block of a shard, that cannot be used as it is: what `data.on_error: skip` may leave out."""


class RunFolderError(UserError):
    """The run folder cannot be used: unwritable, busy, or made by another recipe."""


class ResourceError(UserError):
    """This machine or cluster lacks what the recipe asks for (cpus, gpus, memory, disk)."""


class CheckpointError(StokerError):
    """A checkpoint cannot be written, read or used."""


class SupersededError(CheckpointError):
    """A newer attempt of the run has begun: this one may change nothing that it reads."""


class ExportError(UserError):
    """A checkpoint cannot be exported as asked: there is no format for it, or no room for the result."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's bytes are not what was written: a file is missing, cut, or changed."""


class BadStepError(StokerError):
    """A step that `bad_numbers` does not let pass; others may have begun since."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class NonFiniteError(BadStepError):
    """The loss or the gradient is no number any more: the weights of this step are worth nothing."""


class LossSpikeError(BadStepError):
    """The loss leapt above what `bad_numbers.spike` allows."""


class EngineError(StokerError):
    """The engine's internals are not what Stoker was tested with."""


class WorkerError(Exception):
    """A worker failed by something that another attempt may not meet: a crash, a lost peer, a hang.

    `echo`: by what it saw of another worker's failure.
    """

    def __init__(self, message: str, *, echo: bool = False) -> None:
        super().__init__(message)
        self.echo = echo


class WorkersLeftError(Exception):
    """The workers left at a step boundary to be started again: resized, before a preemption, or to go back."""


class UnfitHostError(StokerError):
    """A host did not pass its health check."""


class ClusterError(UserError):
    """The Ray cluster cannot be reached, refuses us, or has not what the recipe asks for."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the trace that some carry in their text; its class where it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
