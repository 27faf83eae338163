"""`stoker checkpoint list | verify | digest`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from configs.errors import CheckpointError, RunFolderError
from trainer.checkpoint_format import Manifest, check_coverage, read_manifest, verify_file
from trainer.run_folder import RunFolder
from trainer.terminal import console, fail, say

app = typer.Typer(help="List, verify and fingerprint the checkpoints of a run.", no_args_is_help=True)
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR")]
Step = Annotated[int | None, typer.Option(help="default: the newest")]


def open_run(path: Path) -> RunFolder:
    """Raises RunFolderError when the path is no run folder."""
    folder = RunFolder(path.absolute())
    if not folder.recipe.exists():
        raise RunFolderError(f"{path} is not a run folder: no recipe.yaml in it; give {{run.dir}}/{{run.name}}")
    return folder


@app.command("list")
def list_(run_dir: RunDir) -> None:
    """The published checkpoints, oldest first."""
    folder = open_run(run_dir)
    table = Table("step", "samples", "workers", "engine", "bytes", "attempt")
    for step in folder.published_steps():
        manifest = read_manifest(folder.checkpoint(step))
        size = sum(stored.bytes for stored in manifest.files)
        row = (step, manifest.samples, manifest.workers, manifest.engine, f"{size:,}", manifest.attempt)
        table.add_row(*map(str, row))
    console.print(table)


@app.command()
def verify(run_dir: RunDir, step: Step = None) -> None:
    """Check every file of one checkpoint, or of all, against its manifest."""
    folder = open_run(run_dir)
    damaged = 0
    for each in [step] if step is not None else folder.published_steps():
        try:
            _verified(folder, each)
            say(f"step {each}: whole and valid")
        except CheckpointError as error:
            damaged += 1
            fail(f"step {each}: {error}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def digest(run_dir: RunDir, step: Step = None) -> None:
    """sha256 of every parameter's weights and optimizer states: equal for equal states, however they were sharded."""
    from trainer.checkpoint_reader import CheckpointReader  # imports torch

    folder = open_run(run_dir)
    chosen = step if step is not None else _newest(folder)
    with CheckpointReader(folder.checkpoint(chosen), _verified(folder, chosen)) as reader:
        for name, value in reader.digests().items():
            say(f"{value}  {name}")


def _verified(folder: RunFolder, step: int) -> Manifest:
    path = folder.checkpoint(step)
    manifest = read_manifest(path)
    for stored in manifest.files:
        verify_file(path, stored)
    check_coverage(manifest)
    return manifest


def _newest(folder: RunFolder) -> int:
    steps = folder.published_steps()
    if not steps:
        raise RunFolderError(f"{folder.root} has no checkpoint yet")
    return steps[-1]
