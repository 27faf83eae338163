"""Which keys of a recipe have no effect beside the others. Pure.

Not in the schema: a run that began with such a recipe is still to be read and resumed.
"""

import math

from configs.recipe import GptModel, LossScale, Recipe

_ROPE_BASE = GptModel.model_fields["rope_base"].default


def without_effect(recipe: Recipe) -> list[str]:
    """One line each, for keys that are not at their default."""
    found = []
    if recipe.data.val is not None and recipe.validation is None:
        found.append("data.val is not used: add a validation section")
    if recipe.loss_scale != LossScale() and recipe.precision != "fp16":
        found.append(f"loss_scale is not used with precision {recipe.precision}")
    if recipe.zero.reduce_dtype != "fp32" and recipe.precision == "fp32":
        found.append("zero.reduce_dtype is not used with precision fp32")
    if recipe.schedule.kind == "constant" and recipe.schedule.min_lr:
        found.append("schedule.min_lr is not used by a constant schedule")
    if recipe.checkpoint.keep_best is not None:
        found += _keep_best(recipe, recipe.checkpoint.keep_best.metric)
    model = recipe.model
    if isinstance(model, GptModel) and model.positions != "rope" and model.rope_base != _ROPE_BASE:
        found.append(f"model.rope_base is not used with model.positions {model.positions}")
    return found


def _keep_best(recipe: Recipe, metric: str) -> list[str]:
    known = ("val_loss", "val_accuracy" if recipe.model.kind == "resnet" else "val_perplexity")
    if metric not in known:
        return [f"checkpoint.keep_best keeps none, as there is no {metric}: choose from {', '.join(known)}"]
    saved, validated = recipe.checkpoint.every_steps, recipe.validation.every_steps if recipe.validation else 1
    together = math.lcm(saved, validated)
    if max(saved, validated) < recipe.run.steps < together:
        return [
            f"checkpoint.keep_best keeps none, as checkpoints every {saved} steps and validations every {validated} "
            f"first meet at step {together}: make one a multiple of the other"
        ]
    return []
