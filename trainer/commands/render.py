"""`stoker render`: the files with which others start a cluster for a recipe."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.cloud.cluster_shape import check_memory, cloud_of
from cluster.cloud.kuberay import render_kuberay
from cluster.cloud.ray_launcher import render_ray_cluster
from configs.load import dump_recipe, load_recipe
from configs.recipe import Recipe

__all__ = ["app"]


app = typer.Typer(help="Write the YAML that starts a Ray cluster for a recipe.", no_args_is_help=True)
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")]


class _Dumper(yaml.SafeDumper):
    """Text of several lines stays readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


@app.command()
def kuberay(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """A KubeRay RayJob and its recipe, for `kubectl apply -f -`."""
    recipe = _checked(recipe_path, overrides)
    objects = render_kuberay(recipe, dump_recipe(recipe), importlib.metadata.version("ray"))
    typer.echo(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120), nl=False)


@app.command()
def ray_cluster(recipe_path: RecipePath, overrides: Overrides = None) -> None:
    """A cluster for Ray's launcher, for `ray up`."""
    recipe = _checked(recipe_path, overrides)
    cluster = render_ray_cluster(recipe, dump_recipe(recipe))
    typer.echo(yaml.dump(cluster, Dumper=_Dumper, sort_keys=False, width=120), nl=False)


def _checked(path: Path, overrides: list[str] | None) -> Recipe:
    recipe = load_recipe(path, overrides or [])
    cloud = cloud_of(recipe)
    from trainer.launch.memory_estimate import estimate  # imports torch

    memory = estimate(recipe).memory[recipe.zero.stage]
    check_memory(recipe, cloud, memory.offloaded_bytes + (0 if recipe.workers.gpus else memory.device_bytes))
    return recipe
