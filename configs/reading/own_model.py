"""The `model` section of a task of the user's own: its keys, as the class Config in the user's file has them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from configs.errors import RecipeError
from configs.reading.recipe_errors import explain_errors
from configs.reading.user_code import UserCode
from configs.reading.yaml_source import KeyPath, YamlSource
from configs.recipe import Recipe
from configs.sections.model_section import UserModel

__all__ = ["recipe_schema", "resolved_model"]


def resolved_model(model: UserModel, source: YamlSource, origins: dict[KeyPath, str]) -> UserModel:
    """With every default of the user's Config written out. Raises RecipeError, one line a key, and UserCodeError."""
    root = create_model("OwnRecipe", model=(_section(model), ...))
    try:
        found = root.model_validate({"model": {"kind": model.kind, **model.settings}})
    except ValidationError as error:
        raise RecipeError(explain_errors(error.errors(), source, origins, root)) from None
    values = found.model_dump(mode="json")["model"]
    return UserModel.model_validate({**values, "code_sha256": UserCode.of(model.kind).sha256()})


def recipe_schema(recipe: Recipe | None = None) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe; of one with a task of the user's own with that task's keys."""
    if recipe is None or not isinstance(recipe.model, UserModel):
        return Recipe.model_json_schema(by_alias=True)
    own = create_model("Recipe", __base__=Recipe, model=(_section(recipe.model), ...))
    return own.model_json_schema(by_alias=True)


def _section(model: UserModel) -> type[BaseModel]:
    code = UserCode.of(model.kind)
    config = getattr(code.load(), "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise RecipeError(f"model.kind: class {code.name} of {code.path} has no pydantic class Config")

    class OwnModel(config):  # type: ignore[misc, valid-type]
        # A typo is an error whatever the user's class says of unknown keys.
        model_config = ConfigDict(extra="forbid")
        kind: str = Field(description="`FILE.py:CLASS`")

    return OwnModel
