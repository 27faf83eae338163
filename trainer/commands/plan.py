"""`stoker plan`: everything that can be known before anything starts."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from configs.load import dump_recipe, load_recipe
from trainer.terminal import console, say

__all__ = ["plan"]


def plan(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
) -> None:
    """Show the resolved recipe, batch arithmetic, memory, disk and shards. Starts nothing."""
    from trainer.launch.preflight import describe, memory_rows, preflight, preflight_elsewhere  # imports torch

    recipe = load_recipe(recipe_path, overrides or [])
    console.print(Text(dump_recipe(recipe)))
    for line in describe(recipe):
        say(line)
    header, *rows = memory_rows(recipe)
    table = Table(*header, title="estimated memory per worker (* the recipe's stage; activations are the roughest)")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if preflight_elsewhere(recipe, say):
        return
    preflight(recipe, say)
    say("plan: nothing stands in the way of `stoker train`")
