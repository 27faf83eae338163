"""Runs a function on every worker with Ray Train: forked processes, restarts after a failure, a watch over them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.workers.failure_count import Aftermath, Failures
from cluster.workers.worker_shell import ShellOrder
from configs.errors import EXIT_FAILED, StokerError, WorkerError
from configs.recipe import Workers

__all__ = ["WorkerFailure", "run_workers"]


POLL_S = 0.25


class WorkerFailure(StokerError):  # noqa: N818
    """The workers failed for good: the message is the first cause in one line, `details` what every rank said."""

    def __init__(self, message: str, *, details: str, exit_code: int) -> None:
        super().__init__(message)
        self.details = details
        self.exit_code = exit_code


def run_workers(
    order: ShellOrder, *, name: str, workers: Workers, storage: Path, shared: bool, poll: Callable[[], None]
) -> None:
    """Run `order.target` on every worker, until all have returned.

    Needs a Ray around it. When a worker fails, all are stopped and started anew, as often as `workers.max_failures`
    allows; a StokerError ends the run at once, as it would only come again. `poll` is called about four times a second
    in this thread; what it raises ends the wait and leaves the workers to the end of Ray. Raises WorkerFailure.
    """
    fit = _Fit(order, name, workers, storage, shared)
    fit.start()
    while fit.is_alive():
        fit.join(POLL_S)
        poll()
    if fit.error is not None:
        raise _worker_failure(fit.error, fit.failures, workers.max_failures) from fit.error


class _Fit(threading.Thread):
    """Ray Train's `fit` outside the main thread, where it would replace our handler of SIGINT by its own."""

    def __init__(self, order: ShellOrder, name: str, workers: Workers, storage: Path, shared: bool) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._order, self._workers = order, workers
        self._options = {"name": name, "storage": storage, "shared": shared}
        self.error: Exception | None = None
        self.failures = Failures()

    def run(self) -> None:
        # Imported late because Ray reads its settings from the environment when it is imported.
        from ray.train.v2.api.exceptions import WorkerGroupError

        from cluster.ray_cluster.key_value import RunStore
        from cluster.workers.ray_policies import count_failure, failures_of
        from cluster.workers.ray_trainer import make_trainer

        aftermath = Aftermath()
        while True:
            try:
                make_trainer(self._order, workers=self._workers, **self._options).fit()  # type: ignore[arg-type]
            except WorkerGroupError as error:
                self.error = error
                self.failures = failures_of(RunStore(self._order.run))
            except Exception as error:  # the controller was killed, or a worker before its group was up
                self.error = error
                if aftermath.forgives(time.monotonic()) or count_failure(self._order, self._workers.max_failures):
                    continue
            else:
                self.error = None
            return


def _worker_failure(error: Exception, failures: Failures, most: int) -> WorkerFailure:
    from cluster.workers.ray_policies import worker_errors

    errors = worker_errors(error)
    if not errors:
        message = f"the workers could not run, {most + 1} times: {_one_line(error)}"
        return WorkerFailure(message, details=str(error), exit_code=EXIT_FAILED)
    rank, cause = min(errors.items(), key=lambda item: (_is_echo(item[1]), item[0]))
    exit_code = cause.exit_code if isinstance(cause, StokerError) else EXIT_FAILED
    message = f"worker {rank} failed: {_one_line(cause)}"
    if most and not isinstance(cause, StokerError):
        message += f" ({failures.limit(most)})"
    return WorkerFailure(message, details=str(error), exit_code=exit_code)


def _is_echo(error: BaseException) -> bool:
    return isinstance(error, WorkerError) and error.echo


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if isinstance(error, StokerError | WorkerError) else f"{type(error).__name__}: {text}"
