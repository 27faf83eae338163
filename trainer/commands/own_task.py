"""`stoker new task` and `stoker check-task`: a task of one's own, its start and what it must keep."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import EXIT_FAILED, RecipeError
from configs.load import load_recipe
from trainer.terminal import fail, say

__all__ = ["app", "check_task"]


app = typer.Typer(no_args_is_help=True, help="Write the start of a task of your own.")

_TASK = '''"""A task of your own: `stoker train {stem}.yaml`. Change everything below the imports."""

from torch import nn
from torch.nn import functional as F

from trainer import api


class {name}(api.Task):
    """Tells which of `classes` an image shows."""

    units = "images"  # what a target is: "tokens", "images" or "samples"

    class Config(api.Config):
        """The keys of the recipe's `model` section; a typo in one is an error."""

        width: int = 64
        classes: int = 10  # images need it; rows of text need `context: int`

    def build(self) -> nn.Module:
        """Torch's generator is seeded here: the weights are the same on every worker."""
        inputs = self.facts.size**2 * self.facts.channels
        hidden = self.config.width
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, self.config.classes))

    def sums(self, module, batch):
        """Sums over the micro-batch, never means: the global batch is cut in any way, and gives the same gradient."""
        images = batch["images_BHWC"].to(next(module.parameters()).dtype) / 255  # bytes -> the model's precision
        logits, labels = module(images).float(), batch["labels_B"]
        return {{
            "loss": F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"),
            "weight": (labels != -100).sum(),  # -100: nothing is to be learnt from it
            "accuracy": (logits.argmax(1) == labels).sum(),  # reported over the weight, as val_accuracy
        }}
'''
_RECIPE = """# `stoker data pack digits {shards}` makes the data.
run: {{name: {stem}, dir: runs, steps: 200}}
model: {{kind: "{path}:{name}", width: 64}}
data:
  kind: image
  size: 8
  channels: 1
  train: {{shards: "{shards}/train-*.tar"}}
  val: {{shards: "{shards}/val-*.tar"}}
batch: {{global: 64, micro: 16}}
optimizer: {{kind: adamw, lr: 3.0e-3}}
schedule: {{kind: cosine, warmup_steps: 20}}
validation: {{every_steps: 50}}
workers: {{count: 2, cpus: 1}}
"""


@app.callback()
def _new() -> None:
    """So that `task` is a word of the command."""


@app.command()
def task(
    path: Annotated[Path, typer.Argument(metavar="FILE.py", help="of the task; a recipe comes beside it")],
) -> None:
    """FILE.py with a small task that trains as it is, and FILE.yaml, its recipe."""
    name = "".join(word.capitalize() for word in path.stem.split("_"))
    if path.suffix != ".py" or not name.isidentifier() or not path.parent.is_dir():
        raise RecipeError(f"{path}: give a file name such as my_task.py, in a folder that is there")
    recipe, shards = path.with_suffix(".yaml"), "shards/digits"
    for file in (path, recipe):
        if file.exists():
            raise RecipeError(f"{file} is there already: choose another name")
    path.write_text(_TASK.format(stem=path.stem, name=name))
    recipe.write_text(_RECIPE.format(stem=path.stem.replace("_", "-"), path=path, name=name, shards=shards))
    say(f"wrote {path} and {recipe}")
    say(f"next: stoker data pack digits {shards}   stoker train {recipe}")


def check_task(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...")] = None,
) -> None:
    """Try, with the first samples, whether the recipe's task keeps what equal runs need; exit 1 if it does not."""
    from trainer.launch.task_promises import check_promises  # imports torch

    promises = check_promises(load_recipe(recipe_path, overrides or []))
    for promise in promises:
        if promise.problem:
            fail(f"broken: {promise.what}: {promise.problem}")
        else:
            say(f"kept: {promise.what}")
    if any(promise.problem for promise in promises):
        raise typer.Exit(EXIT_FAILED)
