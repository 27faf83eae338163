"""`stoker board`: TensorBoard on localhost."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.checkpoint import open_run
from trainer.terminal import say

__all__ = ["board"]


def board(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    port: Annotated[int, typer.Option(help="0: any free one")] = 6006,
) -> None:
    """Show a run in TensorBoard, on localhost only."""
    folder = open_run(run_dir)
    say(f"TensorBoard of {folder.root} on localhost (Ctrl-C ends it)")
    arguments = ["--logdir", str(folder.tensorboard), "--host", "localhost", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
