"""`stoker checkpoint list | verify | digest | export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from configs.errors import CheckpointError, RunFolderError
from configs.load import load_recipe
from trainer.checkpoint_format import Manifest, check_coverage, read_manifest, verify_file
from trainer.run_folder import RunFolder
from trainer.terminal import console, fail, say

app = typer.Typer(help="List, verify, fingerprint and export the checkpoints of a run.", no_args_is_help=True)
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


@app.command()
def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder that does not exist yet")],
    step: Step = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the weights")] = "fp32",
    ema: Annotated[bool, typer.Option("--ema", help="the averaged weights instead of the last")] = False,
    shard_bytes: Annotated[int, typer.Option(help="more than this becomes several files", min=1)] = 5_000_000_000,
) -> None:
    """Write the weights as a folder that Hugging Face transformers loads (config.json and safetensors)."""
    from trainer.huggingface.companions import tokenizer_path
    from trainer.huggingface.export import DTYPES, Export  # imports torch
    from trainer.huggingface.export import export as write

    folder = open_run(run_dir)
    newest = _newest(folder)
    chosen = newest if step is None else step
    recipe = load_recipe(folder.recipe)
    how = Export(DTYPES[dtype], ema, shard_bytes)
    for path in write(recipe, folder.checkpoint(chosen), _chosen(folder, chosen), out.absolute(), how):
        say(f"{path.stat().st_size:>15,} bytes  {path}")
    tokenizer = tokenizer_path(recipe)
    if tokenizer is not None and not tokenizer.exists():
        say(f"warning: {tokenizer} is not here: there is no tokenizer.json in {out}, nor the id that ends a document")


def _chosen(folder: RunFolder, step: int) -> Manifest:
    """The verified manifest of `step`. Raises RunFolderError naming the steps that are there."""
    steps = folder.published_steps()
    if step not in steps:
        known = ", ".join(map(str, steps))
        raise RunFolderError(f"{folder.root} has no checkpoint of step {step}: choose from {known}")
    return _verified(folder, step)


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
