"""Act on a plan: every shard made by itself, in processes, kept when finished; the same bytes however it went."""

import errno
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError, ResourceError
from data.arrays import Say, silent
from data.pack.pack_manifest import VERSION, ShardRecord
from data.pack.pack_plan import Inputs, Json, PlannedShard, plan_shards
from data.pack.partial_folder import WorkFolder, partial_folder, work_folder
from data.pack.shard_tasks import PackTask, run_in_processes, run_in_this_process
from data.pack.shard_writer import ShardLimits

__all__ = ["PackOptions", "PackProgress", "PackSummary", "ReportProgress", "pack_shards"]


@dataclass(frozen=True)
class PackProgress:
    """How far packing is: inputs read and shards finished, with those of an earlier attempt."""

    inputs: int
    total_inputs: int
    shards: int
    total_shards: int


ReportProgress = Callable[[PackProgress], None]


@dataclass(frozen=True)
class PackSummary:
    """What was written; `bytes` are those of the shards, `skipped` counts inputs left out."""

    train_samples: int
    val_samples: int
    bytes: int
    shards: int
    skipped: int
    tokens: int


@dataclass(frozen=True)
class PackOptions:
    """What changes nothing in the shards."""

    workers: int = 1
    say: Say = silent
    report_progress: ReportProgress | None = None


def pack_shards(
    inputs: Inputs, out: Path, val_fraction: float, limits: ShardLimits, options: PackOptions
) -> PackSummary:
    """Make the shards of `inputs` and their manifest in `out`, or go on where an interrupted call stopped.

    DataError: an input cannot be used; `out` or `out`.partial is of other inputs or options; the disk is full (what is
    finished stays, and the same call goes on). ResourceError: a process was killed.
    """
    _refuse_occupied(out)
    planned = plan_shards(inputs, val_fraction, limits)
    manifest = _make_shards(inputs, planned, _plan_json(inputs, val_fraction, limits), out, options)
    options.say(_summary_line(out, manifest))
    if val_fraction and not manifest["val"]["samples"]:
        options.say(f"{out}: no sample is left for val, though val_fraction is {val_fraction:g}: pack more inputs")
    return _summary_of(manifest)


def _plan_json(inputs: Inputs, val_fraction: float, limits: ShardLimits) -> Json:
    limited = {"val_fraction": val_fraction, "shard_bytes": limits.bytes, "shard_samples": limits.samples}
    return {
        "version": VERSION,
        "kind": inputs.kind,
        "options": {**inputs.options, **limited},
        "inputs": {"count": inputs.count, "sha256": inputs.digest},
        **inputs.facts,
    }


def _refuse_occupied(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already exists: name another output folder, or remove it first")


def _make_shards(inputs: Inputs, planned: Sequence[PlannedShard], plan: Json, out: Path, options: PackOptions) -> Json:
    try:
        with work_folder(out, plan, inputs.modified) as work:
            finished = work.finished(planned)
            if finished:
                options.say(f"{work.folder}: going on, {len(finished)} of {len(planned)} shards are finished")
            _warn_of_space(work, inputs, planned, finished, options.say)
            _make_missing(inputs, planned, finished, work, options)
            return work.publish(plan, inputs.left_out, [finished[shard.name] for shard in planned])
    except OSError as error:
        raise DataError(_stop_message(out, error, planned)) from error
    except BrokenProcessPool as error:
        raise ResourceError(
            f"packing {out} stopped: one of its processes was killed, perhaps for want of memory; "
            f"{_kept_message(out, planned)}: the same command goes on, with a smaller --workers if need be"
        ) from error


def _make_missing(
    inputs: Inputs,
    planned: Sequence[PlannedShard],
    finished: dict[str, ShardRecord],
    work: WorkFolder,
    options: PackOptions,
) -> None:
    """Make the shards that are missing and add their records to `finished`."""
    todo = [shard for shard in planned if shard.name not in finished]
    tasks = (PackTask(work, shard.name, shard.split, inputs.job(shard.inputs)) for shard in todo)
    before = sum(len(shard.inputs) for shard in planned) - sum(len(shard.inputs) for shard in todo)

    def report(read: int) -> None:
        if options.report_progress is not None:
            options.report_progress(PackProgress(before + read, inputs.count, len(finished), len(planned)))

    workers = min(options.workers, len(todo))
    for record in run_in_processes(tasks, workers, report) if workers > 1 else run_in_this_process(tasks, report):
        finished[record.name] = record
    report(inputs.count - before)


def _warn_of_space(
    work: WorkFolder, inputs: Inputs, planned: Sequence[PlannedShard], finished: dict[str, ShardRecord], say: Say
) -> None:
    missing = [shard for shard in planned if shard.name not in finished]
    wanted = sum(int(inputs.sizes[shard.inputs].sum()) for shard in missing)
    free = shutil.disk_usage(work.folder).free
    if wanted > free:
        say(f"{work.folder}: about {wanted / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free")


def _stop_message(out: Path, error: OSError, planned: Sequence[PlannedShard]) -> str:
    where = f" ({error.filename})" if error.filename else ""
    remedy = "make space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
    return (
        f"packing {out} stopped: {error.strerror or error}{where}; {_kept_message(out, planned)}: {remedy}, and the "
        "same command goes on"
    )


def _kept_message(out: Path, planned: Sequence[PlannedShard]) -> str:
    finished = len(WorkFolder(out).finished(planned))
    return f"{finished} of {len(planned)} shards are kept in {partial_folder(out)}"


def _summary_of(manifest: Json) -> PackSummary:
    train, val = manifest["train"], manifest["val"]
    return PackSummary(
        train["samples"],
        val["samples"],
        train["bytes"] + val["bytes"],
        train["shards"] + val["shards"],
        manifest["skipped"]["count"],
        train.get("tokens", 0) + val.get("tokens", 0),
    )


def _summary_line(out: Path, manifest: Json) -> str:
    packed, skipped = _summary_of(manifest), manifest["skipped"]
    tokens = f" ({packed.tokens} tokens)" if packed.tokens else ""
    line = (
        f"packed {out}: {packed.train_samples} train and {packed.val_samples} val samples{tokens}, "
        f"{packed.bytes / 1e6:.1f} MB in {packed.shards} shards"
    )
    if not skipped["count"]:
        return line
    first = skipped["first"][0]
    return f"{line}; {skipped['count']} inputs left out, the first {first['name']} ({first['reason']})"
