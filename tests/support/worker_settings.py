"""The `workers` section of a recipe, with what a test gives."""

from configs.recipe import Workers


def workers(**setting: float | str) -> Workers:
    return Workers.model_validate(setting)
