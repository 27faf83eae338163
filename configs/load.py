"""Recipe file + overrides -> a valid Recipe, or one line that names the key, the place and the remedy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.errors import RecipeError
from configs.reading.own_model import resolved_model
from configs.reading.recipe_errors import explain_errors, shown_value
from configs.reading.yaml_source import KeyPath, YamlSource, parse_value, read_source
from configs.recipe import Recipe
from configs.sections.model_section import UserModel

__all__ = ["dump_recipe", "load_recipe"]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, validate. Raises RecipeError for anything that is wrong, all of it, one line each."""
    source = read_source(path)
    origins = {_override(source, text): text for text in overrides}
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        raise RecipeError(explain_errors(error.errors(), source, origins)) from None
    # A resolved recipe, as a run folder has it, is read without the file: that may be gone.
    if isinstance(recipe.model, UserModel) and recipe.model.code_sha256 is None:
        return recipe.model_copy(update={"model": resolved_model(recipe.model, source, origins)})
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that loads to the same recipe."""
    data = recipe.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def _override(source: YamlSource, text: str) -> KeyPath:
    """Apply `section.key=value` to the source; returns the key."""
    name, equals, value = text.partition("=")
    key: KeyPath = tuple(name.split("."))
    if not equals or not all(key):
        raise RecipeError(f"override {text!r} is not section.key=value, as in batch.micro=8")
    place: Any = source.data
    for part in key[:-1]:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise RecipeError(f"override {text!r}: {part} holds a value, not a section")
    place[key[-1]] = parse_value(value, f"override {shown_value(text)}")
    return key
