"""`stoker train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.session.workplace import workplace
from configs.errors import RecipeError
from configs.load import load_recipe
from configs.sections.model_section import accepting_code_change
from trainer.rank.fault_injection import parse_fault
from trainer.rank.worker_job import WORKER_MODULES
from trainer.terminal import say

__all__ = ["train"]


def train(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
    stop_at: Annotated[int | None, typer.Option(help="leave after this step with a checkpoint, exit 75", min=1)] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="train on the running Ray cluster there (or: auto)")
    ] = None,
    code_changed: Annotated[
        bool, typer.Option("--code-changed", help="go on although the model's own Python file has changed")
    ] = False,
    chaos: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:rank=R@step=N", help="inject a real fault, such as kill:rank=1@step=40; repeatable"),
    ] = None,
) -> None:
    """Train here, or on a running Ray cluster. Resumes by itself from the newest checkpoint in the run folder."""
    recipe = load_recipe(recipe_path, overrides or [])
    if stop_at is not None and stop_at > recipe.run.steps:
        raise RecipeError(f"--stop-at is {stop_at}, beyond run.steps {recipe.run.steps}")
    for text in chaos or []:
        parse_fault(text)
    if code_changed:
        recipe = recipe.model_copy(update={"model": accepting_code_change(recipe.model)})
    say("checking the recipe, the data and this machine")
    if recipe.workers.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Its imports go on while this process does its own.
    with workplace([] if recipe.workers.gpus else WORKER_MODULES) as place:
        from trainer.launch.driver import (
            train as run,  # imports torch: not before the first word, nor for other commands
        )

        code = run(recipe, stop_at, place, address, chaos or [])
    raise typer.Exit(code)
