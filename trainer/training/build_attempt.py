"""Makes the parts of an attempt, one function a part, and puts them together.

Every function here is called on every rank, in the same order: most of them sum, gather or broadcast somewhere.
"""

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from cluster.run.run_events import CheckpointPublished
from configs.errors import DataError
from configs.reading.user_code import UserCode
from configs.sections.model_section import UserModel
from data.dataset import Dataset, open_dataset
from data.index.sidecar import share_in
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.store_protocol import CheckpointStore
from trainer.checkpoint.writer import CheckpointStall, CheckpointWriter
from trainer.engine.deepspeed_engine import DeepSpeedEngine
from trainer.engine.engine_protocol import Engine
from trainer.engine.hardware import peak_flops
from trainer.history.goodput import live_account
from trainer.huggingface.init_from import load_initial_weights
from trainer.metrics.audit import AuditFile
from trainer.metrics.interval import Workload
from trainer.metrics.outputs import Outputs
from trainer.metrics.reporter import Reporter
from trainer.metrics.sinks import JsonLines, MetricSink, Progress
from trainer.metrics.stopwatch import Stopwatch
from trainer.metrics.tensorboard_sink import TensorBoard
from trainer.rank.context import Context
from trainer.rank.worker_job import WorkerJob
from trainer.step_health.bad_number_policy import NumberWatch
from trainer.step_health.skipped_samples import SkippedSamples
from trainer.tasks.build_task import build_task
from trainer.tasks.task_protocol import EngineTask
from trainer.training.attempt import Attempt
from trainer.training.outcome import LeaveRequests
from trainer.training.resume import resume


def build_attempt(
    job: WorkerJob, context: Context, store: CheckpointStore, progress: Progress, cleanup: ExitStack
) -> Attempt:
    """(all ranks) Resumed from the newest checkpoint in `store`; `cleanup` closes what it opens.

    Raises DataError, RunFolderError or CheckpointError, on every rank, where data, recipe or model do not fit.
    """
    task, engine = _build_engine(context, store, progress, cleanup)
    train_data = _open_data(context, "train", cleanup)
    val_data = _open_data(context, "val", cleanup) if context.recipe.validation else None
    context.activity("restoring the checkpoint")
    # Before the metrics: what lies behind the resumed step is put aside, and their clock starts when training does.
    found = resume(context, engine, store, train_data.fingerprint)
    resumed_step = found.step if found else 0
    numbers = NumberWatch(context, found.numbers if found else {}, engine.not_finite)
    outputs = _open_outputs(context, engine, progress, resumed_step)
    skipped, stopwatch = SkippedSamples(context, resumed_step, train_data.left_out()), Stopwatch()
    workload, targets = _workload(context, task, engine), found.targets if found else 0
    source_counts = train_data.source_counts
    reporter = Reporter(context, workload, outputs, stopwatch, numbers, skipped, source_counts, targets=targets)
    cleanup.callback(reporter.close)
    return Attempt(
        context=context,
        resumed_step=resumed_step,
        stop_at=job.stop_at,
        task=task,
        engine=engine,
        train_data=train_data,
        val_data=val_data,
        writer=_build_writer(context, store),
        reporter=reporter,
        stopwatch=stopwatch,
        numbers=numbers,
        skipped=skipped,
        leave_requests=LeaveRequests(context),
    )


def _build_engine(
    context: Context, store: CheckpointStore, progress: Progress, cleanup: ExitStack
) -> tuple[EngineTask, Engine]:
    context.activity("building the model")
    if context.ranks.leads:
        progress.update("building the model", step=0)
    task = build_task(context.recipe, _kept_code(context))
    # Rank 0's word: were ranks to see different lists, some would load weights that the others do not.
    if not context.ranks.from_leader(store.steps()):
        load_initial_weights(context, task.module)
    engine = DeepSpeedEngine(task, context)
    cleanup.callback(engine.close)
    return task, engine


def _kept_code(context: Context) -> Path | None:
    """The copy of the user's file that the driver has made, where the recipe names one."""
    model = context.recipe.model
    if not isinstance(model, UserModel) or model.code_sha256 is None:
        return None
    return UserCode.of(model.kind).copy_in(context.folder.code, model.code_sha256)


def _open_data(context: Context, split: Literal["train", "val"], cleanup: ExitStack) -> Dataset:
    """Raises DataError, on every rank, when the ranks see different data: each would go by an order of its own."""
    share_in(context.folder.index)
    dataset = open_dataset(context.recipe, split, lambda line: context.activity("indexing"))
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


def _build_writer(context: Context, store: CheckpointStore) -> CheckpointWriter:
    return CheckpointWriter(
        store,
        context.folder.checkpoints,
        context.ranks,
        context.recipe.checkpoint,
        superseded=lambda: context.ledger.attempts() > context.attempt,
        published=lambda manifest, stall, seconds: _record_checkpoint(context, manifest, stall, seconds),
        warn=context.warn,
    )


def _record_checkpoint(context: Context, manifest: Manifest, stall: CheckpointStall, seconds: float) -> None:
    """On rank 0, in the thread that writes."""
    context.activity.report(committed=manifest.step)
    spent_s = stall.start.spent_s
    event = CheckpointPublished(
        step=manifest.step,
        seconds=seconds,
        bytes=manifest.total_bytes,
        wait_s=stall.wait_s,
        copy_s=stall.copy_s,
        saved_at=stall.start.saved_at,
        background=context.recipe.checkpoint.background,
        data_wait_s=spent_s.get("data_wait_s", 0.0),
        checkpoint_s=spent_s.get("checkpoint_s", 0.0),
        validation_s=spent_s.get("validation_s", 0.0),
    )
    context.record(event)


def _open_outputs(context: Context, engine: Engine, progress: Progress, resumed_step: int) -> Outputs:
    folder, attempt, ranks = context.folder, context.attempt, context.ranks
    audit = AuditFile(folder, attempt, ranks.rank) if context.recipe.monitor.audit_samples else None
    sinks: list[MetricSink] = []
    account = None
    if ranks.leads:
        # First: it puts the lines of lost steps aside, where the account looks for them.
        sinks = [JsonLines(folder, attempt, resumed_step), TensorBoard(folder, attempt, resumed_step)]
        account = live_account(folder, context.ledger.events(), ranks.world)
    return Outputs(context, engine.device, progress, sinks, account, audit)


def _workload(context: Context, task: EngineTask, engine: Engine) -> Workload:
    recipe, world = context.recipe, context.ranks.world
    return Workload(
        samples_per_step=recipe.batch.global_,
        flops_per_target=task.flops_per_target(),
        units=task.units,
        # Asked for at the first logged line, not here: measured before the first step it would delay it.
        peak_flops=lambda: peak_flops(engine.device, recipe.precision) * world,
    )
