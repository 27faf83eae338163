"""Which keys of a recipe have no effect beside the others, or not the one that they are for. Pure.

Not in the schema: a run that began with such a recipe is still to be read and resumed.
"""

import math

from configs.errors import RecipeError
from configs.recipe import LossScale, Recipe, Schedule, Validation
from configs.sections.model_section import GptModel, ResnetModel, UserModel

__all__ = ["check_keep_best", "without_effect"]


_ROPE_BASE = GptModel.model_fields["rope_base"].default
_SAMPLE_TOKENS = Validation.model_fields["sample_tokens"].default


def without_effect(recipe: Recipe) -> list[str]:
    """One line each, for keys that are not at their default."""
    found = []
    if recipe.data.val is not None and recipe.validation is None:
        found.append("data.val is not used: add a validation section")
    if recipe.loss_scale != LossScale() and recipe.precision != "fp16":
        found.append(f"loss_scale is not used with precision {recipe.precision}")
    if recipe.zero.reduce_dtype != "fp32" and recipe.precision == "fp32":
        found.append("zero.reduce_dtype is not used with precision fp32")
    found += _of_schedule(recipe.schedule)
    model = recipe.model
    if isinstance(model, ResnetModel) and recipe.validation is not None and _asks_for_samples(recipe.validation):
        found.append("validation.sample_tokens and sample_every_steps are not used: a resnet writes no text")
    if isinstance(model, GptModel) and model.positions != "rope" and model.rope_base != _ROPE_BASE:
        found.append(f"model.rope_base is not used with model.positions {model.positions}")
    return found


def _of_schedule(schedule: Schedule) -> list[str]:
    found = []
    if schedule.min_lr and schedule.kind in ("constant", "inverse_sqrt"):
        found.append(f"schedule.min_lr is not used by a {schedule.kind} schedule")
    for key, kind in (
        ("decay_steps", "wsd"),
        ("period_steps", "cosine_restarts"),
        ("period_factor", "cosine_restarts"),
    ):
        if getattr(schedule, key) is not None and schedule.kind != kind:
            found.append(f"schedule.{key} is not used by a {schedule.kind} schedule")
    return found


def _asks_for_samples(validation: Validation) -> bool:
    return validation.sample_tokens not in (0, _SAMPLE_TOKENS) or validation.sample_every_steps is not None


def check_keep_best(recipe: Recipe) -> None:
    """Raises RecipeError where `checkpoint.keep_best` would keep none, seldom one, or the worst."""
    best, validation = recipe.checkpoint.keep_best, recipe.validation
    if best is None or validation is None:
        return
    known = ("val_loss", "val_accuracy" if recipe.model.kind == "resnet" else "val_perplexity")
    is_own = isinstance(recipe.model, UserModel)  # whose metrics are known when it runs
    if not is_own and best.metric not in known:
        raise RecipeError(
            f"checkpoint.keep_best.metric is {best.metric}, which a {recipe.model.kind} does not have: "
            f"choose from {', '.join(known)}"
        )
    if is_own and best.mode is None and best.metric not in ("val_loss", "val_accuracy"):
        raise RecipeError(
            f"checkpoint.keep_best.metric is {best.metric}, of a task of your own: set checkpoint.keep_best.mode to "
            "max or min, as the better end of it"
        )
    if not is_own and best.mode not in (None, best.natural_mode):
        raise RecipeError(
            f"checkpoint.keep_best.mode is {best.mode}, which keeps the worst {best.metric}: remove it, or set "
            f"{best.natural_mode}"
        )
    saved, validated = recipe.checkpoint.every_steps, validation.every_steps
    # Where neither comes before the last step, the last checkpoint alone is there, and validated.
    if saved % validated and validated % saved and max(saved, validated) < recipe.run.steps:
        raise RecipeError(
            f"checkpoint.keep_best compares checkpoints that were validated, but checkpoint.every_steps {saved} and "
            f"validation.every_steps {validated} meet only every {math.lcm(saved, validated)} steps: make one a "
            "multiple of the other"
        )
