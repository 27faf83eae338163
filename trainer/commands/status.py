"""`stoker status`: where a run stands, what happened to it and where its time went."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.run.events import Event
from cluster.run.job_events import HostLost, JobRequeued
from cluster.run.ledger import Ledger, read_json_lines, strict_json
from cluster.run.run_folder import RunFolder
from cluster.run.run_lock import is_held
from cluster.slurm.jobs_of_run import job_ids, known_state
from cluster.slurm.scheduler import SlurmCommands
from configs.errors import CheckpointError, RunFolderError
from configs.load import load_recipe
from configs.recipe import Recipe
from trainer.checkpoint.open_store import checkpoint_store
from trainer.checkpoint.store_protocol import list_steps
from trainer.commands.checkpoint import open_run
from trainer.history.goodput import Account, superseded_lines
from trainer.history.run_report import History, read_history
from trainer.terminal import console, say

__all__ = ["status"]


_FIGURES = (
    *("loss", "val_loss", "val_accuracy", "lr", "step_s", "samples_per_s", "tokens_per_s", "data_wait_s", "skipped"),
)
_SHOWN = 5  # of faults, warnings, restarts
_MEANING = {
    "queue": "waiting for nodes",
    "start": "processes, model, data",
    "restore": "reading a checkpoint",
    "step": "committed optimizer steps",
    "data_wait": "waiting for data",
    "checkpoint": "saving kept training waiting",
    "validation": "",
    "lost": "steps that were trained again",
    "down": "from a fault to the next attempt, and leaving",
}


def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, for programs")] = False,
) -> None:
    """State, progress, faults and goodput of a run."""
    folder = open_run(run_dir)
    recipe = load_recipe(folder.recipe)
    metrics = read_json_lines(folder.metrics)
    history = _read(folder, metrics)
    published, unlisted = _published(folder, recipe)
    last = metrics[-1] if metrics else {"step": 0}
    step = max(last["step"], *(published or [])[-1:], 0)
    if as_json:
        place = {"run_dir": str(folder.root), "step": step, "steps": recipe.run.steps, "checkpoints": published}
        typer.echo(strict_json({**place, "last": last, **history.as_json()}))
        return
    say(f"{folder.root}: {history.verdict.what}, step {step} of {recipe.run.steps}, {history.attempts} attempts")
    for line in _slurm_lines(Ledger(folder.ledger).events()):
        say(line)
    if metrics:
        say("  ".join(f"{name} {last[name]:.6g}" for name in _FIGURES if name in last))
    say(unlisted or (f"newest checkpoint: step {published[-1]}" if published else "no checkpoint yet"))
    _show(history)


def _published(folder: RunFolder, recipe: Recipe) -> tuple[list[int] | None, str]:
    """None, and why, where the checkpoints' store does not answer: the rest of the run can be told all the same."""
    try:
        return list_steps(checkpoint_store(folder, recipe)), ""
    except (CheckpointError, RunFolderError) as error:  # its address alone may be one that cannot be used here
        return None, f"checkpoints: {error}"


def _slurm_lines(events: list[Event]) -> list[str]:
    """The newest job of the run, if it was submitted to Slurm."""
    ids = job_ids(events)
    if not ids:
        return []
    state = known_state(ids[-1], events, SlurmCommands())
    reason = f" ({state.reason})" if state.reason not in ("", "None") else ""
    requeues = sum(isinstance(event, JobRequeued) and event.job == ids[-1] for event in events)
    line = f"slurm: job {ids[-1]} {state.name}{reason}, as {state.source} has it; requeued {requeues} times"
    lost = [event.host for event in events if isinstance(event, HostLost)]
    return [line, *([f"slurm: lost hosts: {', '.join(lost)}"] if lost else [])]


def _read(folder: RunFolder, metrics: list[dict[str, Any]]) -> History:
    busy, events = is_held(folder.root), Ledger(folder.ledger).events()
    return read_history(events, metrics, superseded_lines(folder), time.time(), busy=busy)


def _show(history: History) -> None:
    if history.account.wall_s > 0:
        shares = f"{history.account.fraction:.1%} of the wall time and {history.account.worker_fraction:.1%} of"
        say(f"goodput: {shares} worker-seconds were spent in committed training steps")
        console.print(_table(history.account))
    if history.slowest:
        slowest = history.slowest
        say(f"slowest rank: {slowest['rank']} on {slowest['host']}, {slowest['ratio']:.2f} times the others' own time")
    for restart in history.restarts[-_SHOWN:]:
        say(f"restart: {restart.line()}")
    for fault in history.faults[-_SHOWN:]:
        place = f"attempt {_known(fault.attempt)}, rank {_known(fault.rank)}"
        say(f"fault in {place}: {fault.kind or 'fault'}: {fault.message}")
    for warning in history.warnings[-_SHOWN:]:
        say(f"warning in attempt {_known(warning.attempt)}: {warning.message}")
    say(history.verdict.line())


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _table(account: Account) -> Table:
    table = Table("time", "seconds", "share", "worker-seconds", "", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    held_s = sum(account.worker_seconds.values())
    for kind, seconds in account.seconds.items():
        if seconds > 0:
            held = f"{account.worker_seconds[kind]:,.1f}"
            table.add_row(kind, f"{seconds:,.1f}", f"{seconds / account.wall_s:.1%}", held, _MEANING[kind])
    table.add_row("all", f"{account.wall_s:,.1f}", "100.0%", f"{held_s:,.1f}", "")
    return table
