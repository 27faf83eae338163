"""`stoker schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from configs.load import load_recipe
from configs.reading.own_model import recipe_schema

__all__ = ["schema"]


def schema(
    recipe_path: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="whose model of your own adds its keys")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
) -> None:
    """The JSON Schema of a recipe, for editors and other programs."""
    recipe = load_recipe(recipe_path, overrides or []) if recipe_path else None
    typer.echo(json.dumps(recipe_schema(recipe), indent=1))
