"""`stoker status`: where a run stands, what happened to it and how much of its time was training."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.run_lock import is_held
from configs.load import load_recipe
from trainer.checkpoint_place import checkpoint_store
from trainer.commands.checkpoint import open_run
from trainer.history import read_history
from trainer.ledger import read_json_lines
from trainer.terminal import say

_FIGURES = (
    *("loss", "val_loss", "val_accuracy", "lr", "step_s", "samples_per_s", "tokens_per_s", "data_wait_s", "skipped"),
)


def status(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """State, progress, faults and goodput of a run."""
    folder = open_run(run_dir)
    recipe = load_recipe(folder.recipe)
    steps = recipe.run.steps
    metrics = read_json_lines(folder.metrics)
    history = read_history(read_json_lines(folder.ledger), metrics, time.time(), busy=is_held(folder.root))
    last = metrics[-1] if metrics else {"step": 0}
    published = checkpoint_store(folder, recipe).steps()
    step = max(last["step"], *published[-1:], 0)
    say(f"{folder.root}: {history.state}, step {step} of {steps}, {history.attempts} attempts")
    if metrics:
        say("  ".join(f"{name} {last[name]:.6g}" for name in _FIGURES if name in last))
    say(f"newest checkpoint: step {published[-1]}" if published else "no checkpoint yet")
    if history.goodput is not None:
        say(f"goodput: {history.goodput:.1%} of the wall time was spent in committed training steps")
    for event in history.faults[-5:]:
        say(f"fault in attempt {event['attempt']}, rank {event['rank']}: {event['kind']}: {event['message']}")
    for event in history.warnings[-5:]:
        say(f"warning in attempt {event['attempt']}: {event['message']}")
