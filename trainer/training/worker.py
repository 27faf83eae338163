"""What each worker process runs: build everything, resume, train, tell how it ended."""

import faulthandler
import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from cluster.forks.child_end import ShellConnection
from cluster.run.faults import is_echo
from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.errors import BadStepError, DataError, RunFolderError, StokerError
from configs.recipe import Recipe
from data.dataset import Dataset, open_dataset
from data.index.sidecar import share_in
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.open_store import WORKER_RETRY_S, checkpoint_store
from trainer.checkpoint.rank_receipts import clean_receipts
from trainer.checkpoint.store_protocol import CheckpointStore
from trainer.checkpoint.writer import CheckpointStall, CheckpointWriter
from trainer.engine.deepspeed_engine import DeepSpeedEngine, select_accelerator, use_device
from trainer.engine.engine_protocol import Engine
from trainer.history.goodput import live_account
from trainer.huggingface.init_from import load_initial_weights
from trainer.metrics.full_disk_file import PatientFile
from trainer.metrics.reporter import Reporter
from trainer.metrics.sinks import JsonLines, MetricSink, Progress
from trainer.metrics.tensorboard_sink import TensorBoard
from trainer.rank.activity import Pulse
from trainer.rank.context import Context
from trainer.rank.fault_injection import Chaos, no_chaos
from trainer.rank.process_group import join
from trainer.rank.ranks import Ranks
from trainer.rank.worker_job import Job
from trainer.step_health.bad_number_policy import NumberWatch, RollBack
from trainer.step_health.skipped_samples import SkippedSamples
from trainer.tasks.build_task import build_task
from trainer.tasks.task_protocol import Task
from trainer.training.attempt import Attempt
from trainer.training.loop import train
from trainer.training.resume import header, resume

_SHARED_S = 20.0  # network file systems may show a new file a little later


def main(config: dict[str, Any], link: ShellConnection | None = None) -> dict[str, Any] | None:
    """Entry point in a training process; without a link its torch process group exists already.

    Returns {"again": why} when the workers have left in order to be started again.
    """
    job = Job(**config)
    os.chdir(job.working_folder)
    recipe = Recipe.model_validate(job.recipe)
    folder = RunFolder(Path(job.run_folder))
    ledger = Ledger(folder.ledger)
    if link is not None:
        _check_shared(folder, ledger, job.invocation)
    if _cannot_be_mended(ledger, job.invocation):
        return None
    select_accelerator(recipe.workers.gpus)
    torch.set_num_threads(recipe.workers.threads)
    if link is not None:
        use_device(recipe.workers.gpus)
        join(link)
    ranks = Ranks.connect()
    attempt = ranks.from_leader(ledger.attempts() + 1)
    pulse = Pulse(link, Chaos(job.chaos, ranks.rank, job.invocation, ledger) if job.chaos else no_chaos)
    context = Context(recipe, folder, ledger, ranks, attempt, job.invocation, pulse)
    context.pulse.tell(attempt=attempt)
    _log_to(folder.log(attempt, ranks.rank))
    try:
        return _run_attempt(job, context)
    except Exception as error:
        _record_fault(context, error)
        raise


def _check_shared(folder: RunFolder, ledger: Ledger, invocation: str) -> None:
    """Raises RunFolderError when this host's run folder is not the driver's."""
    deadline = time.monotonic() + _SHARED_S
    while not any(e["event"] == "command" and e.get("invocation") == invocation for e in ledger.events()):
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
        e.get("final") and e.get("invocation") == invocation and e.get("attempt", newest) >= newest
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


def _record_fault(context: Context, error: Exception) -> None:
    bad_step = error.step if isinstance(error, BadStepError) else None
    context.record(
        "fault",
        kind=type(error).__name__,
        message=str(error),
        rank=context.ranks.rank,
        host=socket.gethostname(),
        step=context.pulse.step if bad_step is None else bad_step,
        phase=context.pulse.phase,
        final=isinstance(error, StokerError),  # it would only come again
        echo=not isinstance(error, StokerError) and is_echo(error),
        exit_code=error.exit_code if isinstance(error, StokerError) else 1,
        log=str(context.folder.log(context.attempt, context.ranks.rank)),
    )


def _run_attempt(job: Job, context: Context) -> dict[str, Any] | None:
    store = checkpoint_store(context.folder, context.recipe, WORKER_RETRY_S)
    _record_start(job, context)  # first: from now on an older attempt publishes nothing more
    if context.ranks.leads:
        store.clean()
        clean_receipts(context.folder.checkpoints)
    with ExitStack() as cleanup:
        progress = Progress(context.folder, context.attempt, context.recipe.run.steps)
        context.pulse("building the model")
        if context.ranks.leads:
            progress.update("building the model", step=0)
        task = build_task(context.recipe)
        if not context.ranks.from_leader(store.steps()):
            load_initial_weights(context, task.module)
        engine = DeepSpeedEngine(task, context)
        cleanup.callback(engine.close)
        run = _build_attempt(job, context, store, task, engine, progress, cleanup)
        try:
            outcome = train(run)
        except RollBack as cause:
            outcome = run.roll_back(cause)
        if context.ranks.leads:
            progress.update("stopping the workers", step=outcome.step)
    context.record_once(outcome.kind, step=outcome.step, reason=outcome.reason)
    return {"again": outcome.reason} if outcome.again else None


def _record_start(job: Job, context: Context) -> None:
    """The attempt begins; with the times that show where those seconds went."""
    places = context.ranks.gather((socket.gethostname(), os.getpid()))
    if not context.ranks.leads:
        return
    context.claim(
        workers=context.ranks.world,
        host=places[0][0],
        pid=places[0][1],
        hosts=[host for host, _ in places],
        pids=[pid for _, pid in places],
        since_command_s=time.time() - job.started,
        process_started=psutil.Process().create_time(),
    )


def _build_attempt(
    job: Job,
    context: Context,
    store: CheckpointStore,
    task: Task,
    engine: Engine,
    progress: Progress,
    cleanup: ExitStack,
) -> Attempt:
    train_data = _open(context, "train", cleanup)
    val_data = _open(context, "val", cleanup) if context.recipe.validation else None
    context.pulse("restoring the checkpoint")
    found = resume(context, engine, store, train_data.fingerprint)
    resumed = found.step if found else 0
    numbers = NumberWatch(context, found.numbers if found else {}, engine.not_finite)
    sinks: list[MetricSink] = []
    if context.ranks.leads:
        sinks = [
            JsonLines(context.folder, context.attempt, resumed),
            TensorBoard(context.folder, context.attempt, resumed),
        ]
    ranks, events = context.ranks, context.ledger.events()
    account = live_account(context.folder, events, ranks.world) if ranks.leads else None
    skipped = SkippedSamples(context, resumed, train_data.left_out())
    audit = _open_audit(context)
    reporter = Reporter(
        context,
        task,
        engine.device,
        progress,
        sinks,
        account,
        audit,
        skipped,
        numbers,
        train_data.source_counts,
        targets=found.targets if found else 0,
    )
    cleanup.callback(reporter.close)
    writer = CheckpointWriter(
        store,
        context.folder.checkpoints,
        context.ranks,
        context.recipe.checkpoint,
        superseded=lambda: context.ledger.attempts() > context.attempt,
        published=lambda manifest, stall, seconds: _published(context, reporter, manifest, stall, seconds),
        warn=context.warn,
    )
    return Attempt(
        context=context,
        resumed_step=resumed,
        stop_at=job.stop_at,
        task=task,
        engine=engine,
        train_data=train_data,
        val_data=val_data,
        writer=writer,
        reporter=reporter,
        numbers=numbers,
        header=lambda step: replace(
            header(context, engine, train_data.fingerprint, step, reporter.targets), numbers=numbers.state()
        ),
    )


def _published(
    context: Context, reporter: Reporter, manifest: Manifest, stall: CheckpointStall, seconds: float
) -> None:
    context.pulse.tell(committed=manifest.step)
    figures = {"seconds": seconds, "bytes": manifest.total_bytes, **asdict(stall)}
    context.record("checkpoint", step=manifest.step, **figures, **reporter.save_begun(manifest.step))


def _open(context: Context, split: Literal["train", "val"], cleanup: ExitStack) -> Dataset:
    """Raises DataError, on every rank, when the ranks see different data: each would go by an order of its own."""
    share_in(context.folder.index)
    dataset = open_dataset(context.recipe, split, lambda line: context.pulse("indexing"))
    cleanup.callback(dataset.close)
    seen = context.ranks.gather((dataset.fingerprint, dataset.count, dataset.size.samples, socket.gethostname()))
    for rank, (fingerprint, _, samples, host) in enumerate(seen):
        if fingerprint != seen[0][0]:
            raise DataError(
                f"the workers see different {split} data: rank 0 on {seen[0][3]} has {seen[0][2]} samples (fingerprint "
                f"{seen[0][0][:12]}), rank {rank} on {host} has {samples} ({fingerprint[:12]}): give every node the "
                "same shards, or put them where all nodes read them"
            )
    return dataset


def _open_audit(context: Context) -> PatientFile | None:
    wanted = context.recipe.monitor.audit_samples
    return PatientFile(context.folder.audit(context.attempt, context.ranks.rank)) if wanted else None
