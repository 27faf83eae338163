"""Slurm profiles: one file per user with a `slurm:` section for each cluster, below the recipe and the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.errors import RecipeError
from configs.reading.yaml_source import read_source
from configs.recipe import Recipe
from configs.sections.slurm_section import Slurm

__all__ = ["profiles_path", "with_profile"]


VARIABLE = "STOKER_SLURM_PROFILES"
DEFAULT = "default"


def profiles_path(environment: Mapping[str, str]) -> Path:
    """$STOKER_SLURM_PROFILES, else slurm.yaml in the user's folder for configuration."""
    if chosen := environment.get(VARIABLE):
        return Path(chosen)
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/")) / ".config")
    return Path(base) / "stoker" / "slurm.yaml"


def with_profile(recipe: Recipe, options: Mapping[str, Any], path: Path) -> Recipe:
    """`recipe` with a whole `slurm:` section: `options` go before the recipe's keys, these before the profile's.

    Raises RecipeError for an unknown profile, and for values that are wrong or do not fit together.
    """
    own = recipe.slurm.model_dump(exclude_unset=True) if recipe.slurm else {}
    asked = options.get("profile") or own.get("profile")
    profile = _read(path, asked)
    try:
        section = Slurm.model_validate({**profile, **own, **options})
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(detail, path) for detail in error.errors())) from None
    return recipe.model_copy(update={"slurm": section})


def _read(path: Path, asked: str | None) -> dict[str, Any]:
    if not path.exists():
        if asked:
            raise RecipeError(f"slurm.profile is {asked!r}, but there is no {path}: write it, or set {VARIABLE}")
        return {}
    source = read_source(path)
    name = asked or DEFAULT
    if name not in source.data:
        if asked:
            known = ", ".join(map(str, source.data))
            raise RecipeError(f"slurm.profile {asked!r} is not in {path}; known: {known}")
        return {}
    profile = source.data[name]
    if not isinstance(profile, dict):
        raise RecipeError(f"profile {name!r} ({source.where((name,))}) is {profile!r}: expected keys of slurm:")
    for key in profile:
        if key not in Slurm.model_fields:
            known = ", ".join(Slurm.model_fields)
            raise RecipeError(f"{name}.{key} is unknown ({source.where((name, key))}); known: {known}")
    return profile


def _explain(detail: Any, path: Path) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    key = ".".join(map(str, detail["loc"]))
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"slurm.{key} is {detail['input']!r} (option, recipe or {path}): expected {expected}"
