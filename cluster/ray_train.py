"""Runs a function on every worker with Ray Train: one process group, restarts after a failure."""

import threading
from collections.abc import Callable
from typing import Any

from configs.errors import EXIT_FAILED, StokerError
from configs.recipe import Workers

POLL_S = 0.25


class WorkerFailure(StokerError):  # noqa: N818
    """The workers failed for good: the message is the first cause in one line, `details` what every rank said."""

    def __init__(self, message: str, *, details: str, exit_code: int) -> None:
        super().__init__(message)
        self.details = details
        self.exit_code = exit_code


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    workers: Workers,
    backend: str,
    poll: Callable[[], None],
) -> None:
    """Run `worker(config)` in `workers.count` processes, a torch process group of `backend`, until all have returned.

    Needs a LocalRay around it. When a worker fails, all are stopped and started anew, `workers.max_failures` times at
    most; a StokerError ends the run at once, as it would only come again. `poll` is called about four times a second in
    this thread; what it raises ends the wait and leaves the workers to the end of the LocalRay. Raises WorkerFailure.
    """
    fit = _Fit(worker, config, name, workers, backend)
    fit.start()
    while fit.is_alive():
        fit.join(POLL_S)
        poll()
    if fit.error is not None:
        raise _worker_failure(fit.error, workers.max_failures) from fit.error


class _Fit(threading.Thread):
    """Ray Train's `fit` outside the main thread, where it would replace our handler of SIGINT by its own."""

    def __init__(
        self,
        worker: Callable[[dict[str, Any]], None],
        config: dict[str, Any],
        name: str,
        workers: Workers,
        backend: str,
    ) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.arguments = worker, config, name, workers, backend
        self.starts = workers.max_failures + 1
        self.error: Exception | None = None

    def run(self) -> None:
        # Imported late because Ray reads its settings, which LocalRay makes, when it is imported.
        from cluster.local_trainer import died_at_start, make_trainer, release_workers

        for _ in range(self.starts):
            try:
                make_trainer(*self.arguments).fit()
            except Exception as error:
                self.error = error
                if died_at_start(error):
                    release_workers()
                    continue
            else:
                self.error = None
            return


def _worker_failure(error: Exception, restarts: int) -> WorkerFailure:
    from cluster.local_trainer import died_at_start, is_death, worker_errors

    errors = worker_errors(error)
    if died_at_start(error):
        message = f"a worker died while it started, {restarts + 1} times (killed, out of memory, or crashed)"
        return WorkerFailure(message, details=str(error), exit_code=EXIT_FAILED)
    if not errors:
        return WorkerFailure(
            f"the workers could not run: {_one_line(error)}", details=str(error), exit_code=EXIT_FAILED
        )
    rank, cause = min(errors.items(), key=lambda item: (_is_echo(item[1]), item[0]))
    exit_code = cause.exit_code if isinstance(cause, StokerError) else EXIT_FAILED
    if is_death(cause):
        message = f"worker {rank} died without a Python error (killed, out of memory, or crashed)"
    else:
        message = f"worker {rank} failed: {_one_line(cause)}"
    if restarts and exit_code == EXIT_FAILED:
        message += f" (after {restarts} restarts, workers.max_failures)"
    return WorkerFailure(message, details=str(error), exit_code=exit_code)


def is_consequence(text: str) -> bool:
    """Whether an error's text is what the other ranks see of a lost one: a broken connection inside a collective."""
    return any(word in text.lower() for word in ("gloo", "nccl", "connection"))


def _is_echo(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and is_consequence(str(error))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if isinstance(error, StokerError) else f"{type(error).__name__}: {text}"
