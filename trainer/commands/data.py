"""`stoker data`: make shards from files, index them, check them, print which samples form a global batch."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.run.ledger import Ledger
from cluster.run.run_folder import RunFolder
from configs.errors import DataError, RecipeError
from configs.load import load_recipe
from configs.recipe import Recipe
from data.batch import step_slices
from data.dataset import open_dataset
from data.index.open_catalog import open_catalog
from data.verify.verify_samples import verify_shards
from trainer.commands import pack
from trainer.step_health.bad_numbers import left_out_batches

__all__ = ["app"]


app = typer.Typer(no_args_is_help=True, help="Make, index and check shards.")
app.add_typer(pack.app, name="pack")


@app.command("index")
def index_command(shards: list[str]) -> None:
    """Index SHARDS (paths, URLs, brace ranges, globs) now rather than when training starts."""
    catalog = open_catalog(shards, say=typer.echo)
    parts = sorted({name for index in catalog.indexes for name in index.part_names})
    typer.echo(f"{len(catalog.shards)} shards, {catalog.count} samples, parts {', '.join(parts)}")


@app.command("verify")
def verify_command(
    targets: Annotated[list[str], typer.Argument(metavar="RECIPE [section.key=value]... | SHARDS...")],
) -> None:
    """Read and decode every sample of a recipe's shards, or of SHARDS; every problem is listed."""
    recipe = load_recipe(Path(targets[0]), targets[1:]) if targets[0].endswith((".yaml", ".yml")) else None
    splits = [targets] if recipe is None else _splits(recipe)
    problems = [problem for patterns in splits for problem in verify_shards(patterns, recipe, typer.echo)]
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise DataError(f"{len(problems)} problems found: each is named above, with its remedy")
    typer.echo("all samples read and decoded: no problems")


@app.command("order")
def order_command(
    recipe: Path,
    step: Annotated[int, typer.Option(min=1, help="global batch, counted from 1")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
) -> None:
    """Print the sample keys of global batch STEP, a line per micro-batch: the same for any number of workers."""
    resolved = load_recipe(recipe, overrides or [])
    if step > resolved.run.steps:
        raise RecipeError(f"--step {step} is beyond run.steps {resolved.run.steps}: choose a step of the run")
    dataset = open_dataset(resolved, "train", typer.echo)
    folder = RunFolder.of(resolved)
    if cause := left_out_batches(Ledger(folder.ledger).events()).get(step):
        typer.echo(f"left out of {folder.root}, never trained on: {cause}")
    for piece in step_slices(step, resolved.batch, rank=0, ranks=1):
        typer.echo(f"micro-batch {piece.micro}: {' '.join(dataset.keys(piece.start, piece.stop))}")


def _splits(recipe: Recipe) -> list[str | list[str]]:
    val = [recipe.data.val.shards] if recipe.data.val is not None else []
    return [source.shards for source in recipe.data.train.sources] + val
