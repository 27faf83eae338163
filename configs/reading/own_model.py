"""The `model` section of a task of the user's own: its keys, as the class Config in the user's file has them."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from configs.errors import RecipeError, UserCodeError
from configs.reading.recipe_errors import explain_errors
from configs.reading.user_code import UserCode, describe
from configs.reading.yaml_source import KeyPath, YamlSource
from configs.recipe import Recipe
from configs.sections.model_section import UserModel

__all__ = ["recipe_schema", "resolved_model"]


def resolved_model(model: UserModel, source: YamlSource, origins: dict[KeyPath, str]) -> UserModel:
    """With every default of the user's Config written out. Raises RecipeError, one line a key, and UserCodeError."""
    code = UserCode.of(model.kind)
    section = _section(model)
    try:
        root = create_model("OwnRecipe", model=(section, ...))
        found = root.model_validate({"model": {"kind": model.kind, **model.settings}}).model  # type: ignore[attr-defined]
        values = _dumped(found)
        again = _dumped(section.model_validate(values))
    except ValidationError as error:
        raise RecipeError(explain_errors(error.errors(), source, origins, root)) from None
    except RecipeError:
        raise
    except Exception as error:
        raise UserCodeError(describe(error)) from error
    _check_kept(section, values, again)
    return UserModel.model_validate({**values, "code_sha256": code.sha256()})


def _dumped(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", by_alias=True, round_trip=True)


def _check_kept(section: type[BaseModel], values: dict[str, Any], again: dict[str, Any]) -> None:
    """Workers get the values as JSON, and read them by the same class: nothing may be lost or changed on the way."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key not in values:
            raise RecipeError(f"model.{key}: its field is excluded, so workers would get its default: include it")
        if values[key] != again.get(key) or not _is_json(values[key]):
            raise RecipeError(
                f"model.{key} is {values[key]!r}, and {again.get(key)!r} when that is read again: give it a type that "
                "JSON keeps, and a validator that changes nothing the second time"
            )


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except ValueError:
        return False


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

    if taken := {"kind", "code_sha256"} & config.model_fields.keys():
        raise RecipeError(f"model.kind: Config of {code.name} has a field {min(taken)}, which is Stoker's: rename it")

    for key, field in config.model_fields.items():
        if any(word in str(field.annotation) for word in ("Secret", "set[", "Set[")):
            raise RecipeError(f"model.{key}: a secret or a set is not the same in every process: use text or a list")

    class OwnModel(config):  # type: ignore[misc, valid-type]
        # A typo is an error whatever the user's class says of unknown keys.
        model_config = ConfigDict(extra="forbid")
        kind: str = Field(description="`FILE.py:CLASS`")

    return OwnModel
