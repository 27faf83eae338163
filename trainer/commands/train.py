"""`stoker train`."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import RecipeError
from configs.load import load_recipe
from trainer.terminal import say


def train(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    stop_at: Annotated[int | None, typer.Option(help="leave after this step with a checkpoint, exit 75", min=1)] = None,
) -> None:
    """Train here. Resumes by itself from the newest checkpoint in the run folder."""
    recipe = load_recipe(recipe_path, overrides or [])
    if stop_at is not None and stop_at > recipe.run.steps:
        raise RecipeError(f"--stop-at is {stop_at}, beyond run.steps {recipe.run.steps}")
    say("checking the recipe, the data and this machine")
    from trainer.driver import train as run  # imports torch: not before the first word, nor for other commands

    raise typer.Exit(run(recipe, stop_at))
