"""`stoker data`: make shards from files, index them, check them, print which samples form a global batch."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import DataError
from configs.load import load_recipe
from configs.recipe import Recipe
from data.batch import step_slices
from data.catalog import open_catalog
from data.dataset import open_dataset
from data.examples import pack_digits, pack_stdlib
from data.pack import pack_images, pack_text
from data.shard_writer import DEFAULT_LIMITS, ShardLimits
from data.verify import verify

app = typer.Typer(no_args_is_help=True, help="Make, index and check shards.")
pack = typer.Typer(no_args_is_help=True, help="Make train and val shards: OUT/train-000000.tar …, OUT/val-000000.tar …")
app.add_typer(pack, name="pack")

Out = Annotated[Path, typer.Argument(help="new folder for the shards")]
ValFraction = Annotated[float, typer.Option(min=0.0, max=1.0, help="share of samples for validation")]
ShardBytes = Annotated[int, typer.Option(min=1, help="bytes per shard, about")]


@pack.command("text")
def pack_text_command(
    folder: Path,
    out: Out,
    glob: Annotated[str, typer.Option(help="which files, relative to FOLDER")] = "**/*.txt",
    val_fraction: ValFraction = 0.05,
    shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes,
) -> None:
    """One sample per UTF-8 file of FOLDER."""
    pack_text(folder, glob, out, val_fraction, limits=ShardLimits(bytes=shard_bytes), say=typer.echo)


@pack.command("images")
def pack_images_command(
    folder: Path, out: Out, val_fraction: ValFraction = 0.05, shard_bytes: ShardBytes = DEFAULT_LIMITS.bytes
) -> None:
    """One sample per image of FOLDER/CLASS/; the classes are numbered in OUT/classes.json."""
    pack_images(folder, out, val_fraction, limits=ShardLimits(bytes=shard_bytes), say=typer.echo)


@pack.command("digits")
def pack_digits_command(out: Out) -> None:
    """scikit-learn's handwritten digits, 8×8 grey."""
    pack_digits(out, say=typer.echo)


@pack.command("stdlib")
def pack_stdlib_command(out: Out) -> None:
    """The Python files of this interpreter's standard library, without tests."""
    pack_stdlib(out, say=typer.echo)


@app.command("index")
def index_command(shards: list[str]) -> None:
    """Index SHARDS (paths, brace ranges, globs) now rather than when training starts."""
    catalog = open_catalog(shards, typer.echo)
    parts = sorted({name for index in catalog.indexes for name in index.part_names})
    typer.echo(f"{len(catalog.shards)} shards, {catalog.count} samples, parts {', '.join(parts)}")


@app.command("verify")
def verify_command(targets: Annotated[list[str], typer.Argument(metavar="RECIPE | SHARDS...")]) -> None:
    """Read and decode every sample of a recipe's shards, or of SHARDS; every problem is listed."""
    recipe = load_recipe(Path(targets[0]), []) if targets[0].endswith((".yaml", ".yml")) else None
    splits = [targets] if recipe is None else _splits(recipe)
    problems = [problem for patterns in splits for problem in verify(patterns, recipe, typer.echo)]
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
    dataset = open_dataset(resolved, "train", typer.echo)
    for piece in step_slices(step, resolved.batch, rank=0, ranks=1):
        typer.echo(f"micro-batch {piece.micro}: {' '.join(dataset.keys(piece.start, piece.stop))}")


def _splits(recipe: Recipe) -> list[str | list[str]]:
    return [split.shards for split in (recipe.data.train, recipe.data.val) if split is not None]
