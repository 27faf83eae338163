"""What each worker process runs: joins the others, makes an attempt, trains, and tells how it ended."""

import faulthandler
import os
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch

from cluster.forks.child_end import ShellConnection
from cluster.run.ledger import Ledger
from cluster.run.run_events import AttemptStarted, CommandStarted, Fault
from cluster.run.run_folder import RunFolder
from configs.errors import RunFolderError
from configs.recipe import Recipe
from configs.sections.model_section import accepting_code_change
from trainer.checkpoint.open_store import WORKER_RETRY_S, checkpoint_store
from trainer.checkpoint.rank_receipts import clean_receipts
from trainer.engine.deepspeed_engine import select_accelerator, use_device
from trainer.metrics.sinks import Progress
from trainer.rank.activity import Activity
from trainer.rank.context import Context
from trainer.rank.fault_injection import Chaos, no_chaos
from trainer.rank.process_group import join
from trainer.rank.ranks import Ranks
from trainer.rank.worker_job import WorkerJob
from trainer.step_health.bad_number_policy import RollBack
from trainer.training.build_attempt import build_attempt
from trainer.training.loop import train

_SHARED_S = 20.0  # network file systems may show a new file a little later


def main(config: dict[str, Any], shell: ShellConnection | None = None) -> dict[str, Any] | None:
    """Entry point in a training process; without a shell its torch process group exists already.

    Returns {"again": why} when the workers have left in order to be started again.
    """
    job = WorkerJob(**config)
    os.chdir(job.working_folder)
    recipe = Recipe.model_validate(job.recipe)
    if job.code_changed:
        recipe = recipe.model_copy(update={"model": accepting_code_change(recipe.model)})
    folder = RunFolder(Path(job.run_folder))
    ledger = Ledger(folder.ledger)
    if shell is not None:
        _check_shared(folder, ledger, job.invocation)
    if _cannot_be_mended(ledger, job.invocation):
        return None
    select_accelerator(recipe.workers.gpus)
    torch.set_num_threads(recipe.workers.threads)
    if shell is not None:
        use_device(recipe.workers.gpus)
        join(shell)
    ranks = Ranks.connect()
    attempt = ranks.from_leader(ledger.attempts() + 1)
    activity = Activity(shell, Chaos(job.chaos, ranks.rank, job.invocation, ledger) if job.chaos else no_chaos)
    context = Context(recipe, folder, ledger, ranks, attempt, job.invocation, activity)
    context.activity.report(attempt=attempt)
    _log_to(folder.log(attempt, ranks.rank))
    try:
        return _run_attempt(job, context)
    except Exception as error:
        context.record_fault(error)
        raise


def _check_shared(folder: RunFolder, ledger: Ledger, invocation: str) -> None:
    """Raises RunFolderError when this host's run folder is not the driver's."""
    deadline = time.monotonic() + _SHARED_S
    while not any(isinstance(e, CommandStarted) and e.invocation == invocation for e in ledger.events()):
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"run folder {folder.root} on host {socket.gethostname()} is another one than that of `stoker train`: "
                "set run.dir to a folder that all hosts share"
            )
        time.sleep(0.5)


def _cannot_be_mended(ledger: Ledger, invocation: str) -> bool:
    """True after a fault that no restart can mend: Ray restarts the workers all the same."""
    newest = ledger.attempts()  # a superseded attempt that comes to itself again says nothing of this one
    return any(
        isinstance(e, Fault) and e.final and e.invocation == invocation and (e.attempt is None or e.attempt >= newest)
        for e in ledger.events()
    )


def _log_to(path: Path) -> None:
    """Send all output of this process, native libraries' too, to its own log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()  # the last words of a crash in native code


def _run_attempt(job: WorkerJob, context: Context) -> dict[str, Any] | None:
    """(all ranks) From the attempt's record in the ledger to how it ended; {"again": why} where it is to start anew."""
    store = checkpoint_store(context.folder, context.recipe, WORKER_RETRY_S)
    _record_start(job, context)  # first: from now on an older attempt publishes nothing more
    if context.ranks.leads:
        store.clean()
        clean_receipts(context.folder.checkpoints)
    progress = Progress(context.folder, context.attempt, context.recipe.run.steps)
    with ExitStack() as cleanup:
        run = build_attempt(job, context, store, progress, cleanup)
        try:
            outcome = train(run)
        except RollBack as cause:  # raised on every rank
            outcome = run.roll_back(cause)
        if context.ranks.leads:
            progress.update("stopping the workers", step=outcome.step)
    # After the cleanup: who reads this event finds all figures on disk.
    context.record_once(outcome.kind(step=outcome.step, reason=outcome.reason))
    return {"again": outcome.reason} if outcome.again else None


def _record_start(job: WorkerJob, context: Context) -> None:
    """The attempt begins; with the times that show where those seconds went."""
    places = context.ranks.gather((socket.gethostname(), os.getpid()))
    if not context.ranks.leads:
        return
    event = AttemptStarted(
        workers=context.ranks.world,
        host=places[0][0],
        pid=places[0][1],
        hosts=[host for host, _ in places],
        pids=[pid for _, pid in places],
        since_command_s=time.time() - job.started,
        process_started=psutil.Process().create_time(),
    )
    context.claim(event)
