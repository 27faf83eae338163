"""`stoker checkpoint list | verify | digest | export`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from cluster.run.run_folder import RunFolder
from configs.errors import CheckpointError, RunFolderError
from configs.load import load_recipe
from configs.recipe import Recipe
from trainer.checkpoint.open_store import checkpoint_store, store_at
from trainer.checkpoint.store_protocol import CheckpointStore, list_steps, read_manifest
from trainer.terminal import console, fail, say

__all__ = ["app"]


app = typer.Typer(help="List, verify, fingerprint and export the checkpoints of a run.", no_args_is_help=True)
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR")]
Place = Annotated[str, typer.Argument(metavar="RUN_DIR", help="or the path or URL of one checkpoint (…/step-NNNNNNNN)")]
Step = Annotated[int | None, typer.Option(help="default: the newest")]


def open_run(path: Path) -> RunFolder:
    """Raises RunFolderError when the path is no run folder."""
    folder = RunFolder(path.absolute())
    if not folder.recipe.exists():
        raise RunFolderError(f"{path} is not a run folder: no recipe.yaml in it; give {{run.dir}}/{{run.name}}")
    return folder


def open_store(path: Path) -> CheckpointStore:
    """Of a run folder, wherever its recipe says that the checkpoints are. Raises RunFolderError."""
    folder = open_run(path)
    return checkpoint_store(folder, load_recipe(folder.recipe))


@dataclass(frozen=True)
class Located:
    """What RUN_DIR and --step name. `step` is None for all, or the newest; `recipe` where no run folder is known."""

    store: CheckpointStore
    step: int | None
    recipe: Recipe | None


def locate(place: str, step: int | None) -> Located:
    """Raises RunFolderError when `place` is neither a run folder nor a checkpoint."""
    whole = place.rstrip("/") if "://" in place else str(Path(place).absolute())
    found = re.fullmatch(r"(.+)/step-(\d{8,})", whole)
    if found is None or RunFolder(Path(whole)).recipe.exists():  # a run may have such a name
        return Located(open_store(Path(place)), step, load_recipe(open_run(Path(place)).recipe))
    named = int(found[2])
    if step not in (None, named):
        raise RunFolderError(f"{place} is the checkpoint of step {named}, --step is {step}: leave one of them out")
    run = RunFolder(Path(found[1]).parent)
    inside = str(run.checkpoints) == found[1] and run.recipe.exists()
    return Located(store_at(found[1]), named, load_recipe(run.recipe) if inside else None)


@app.command("list")
def list_(run_dir: RunDir) -> None:
    """The published checkpoints, oldest first."""
    store = open_store(run_dir)
    table = Table("step", "samples", "workers", "engine", "bytes", "attempt", "validation")
    for step in list_steps(store):
        manifest = read_manifest(store.at(step))
        figures = " ".join(f"{name} {value:.4g}" for name, value in manifest.metrics.items())
        size = f"{manifest.total_bytes:,}"
        row = (step, manifest.samples, manifest.workers, manifest.engine, size, manifest.attempt, figures)
        table.add_row(*map(str, row))
    console.print(table)


@app.command()
def verify(run_dir: Place, step: Step = None) -> None:
    """Check every file of one checkpoint, or of all, against its manifest."""
    located = locate(run_dir, step)
    store, damaged = located.store, 0
    steps = list_steps(store) if located.step is None else [_chosen(located)]
    from trainer.checkpoint.reader import verify as verified  # imports torch

    for each in steps:
        try:
            verified(store.at(each))
            say(f"step {each}: whole and valid")
        except CheckpointError as error:
            damaged += 1
            fail(f"step {each}: {error}")
    if damaged:
        raise typer.Exit(1)


@app.command()
def digest(run_dir: Place, step: Step = None) -> None:
    """sha256 of every parameter's weights and optimizer states: equal for equal states, however they were sharded."""
    located = locate(run_dir, step)
    folder = located.store.at(_chosen(located))
    from trainer.checkpoint.reader import CheckpointReader, verify

    with CheckpointReader(folder, verify(folder)) as reader:
        for name, value in reader.digests().items():
            say(f"{value}  {name}")


@app.command()
def export(
    run_dir: Place,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a folder that does not exist yet")],
    step: Step = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="of the weights")] = "fp32",
    ema: Annotated[bool, typer.Option("--ema", help="the averaged weights instead of the last")] = False,
    shard_bytes: Annotated[int, typer.Option(help="more than this becomes several files", min=1)] = 5_000_000_000,
) -> None:
    """Write the weights as a folder that Hugging Face transformers loads (config.json and safetensors)."""
    located = locate(run_dir, step)
    recipe, folder = located.recipe, located.store.at(_chosen(located))
    if recipe is None:
        raise RunFolderError(f"{run_dir} is in no run folder, whose recipe.yaml tells the model: give RUN_DIR --step N")
    from trainer.checkpoint.reader import verify  # imports torch
    from trainer.huggingface.config_files import tokenizer_path
    from trainer.huggingface.export import DTYPES, ExportOptions
    from trainer.huggingface.export import export as write

    how = ExportOptions(DTYPES[dtype], ema, shard_bytes)
    if recipe.ema is not None and not ema:
        say("these are the last weights; validation is of their average (ema), which --ema exports")
    for path in write(recipe, folder, verify(folder), out.absolute(), how):
        say(f"{path.stat().st_size:>15,} bytes  {path}")
    tokenizer = tokenizer_path(recipe)
    if tokenizer is not None and not tokenizer.exists():
        say(f"warning: {tokenizer} is not here: there is no tokenizer.json in {out}, nor the id that ends a document")


def _chosen(located: Located) -> int:
    """The step that is named, or the newest. Raises RunFolderError naming the steps that are there."""
    store, steps = located.store, list_steps(located.store)
    if not steps:
        raise RunFolderError(f"{store.where} has no checkpoint yet")
    if located.step is not None and located.step not in steps:
        known = ", ".join(map(str, steps))
        raise RunFolderError(f"{store.where} has no checkpoint of step {located.step}: choose from {known}")
    return steps[-1] if located.step is None else located.step
