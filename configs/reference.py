"""Generates docs/recipes.md and the JSON Schema for editors from the recipe's schema."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.reading.own_model import recipe_schema
from configs.recipe import Recipe
from configs.sections.model_section import OWN
from configs.sections.section import BEYOND

_HEAD = """# Recipe reference

Generated from `configs/recipe.py` and `configs/sections/` by `make docs`; a test checks that it is up to date.
A recipe is one YAML file. Unknown keys are errors. Override any key on the command line: `section.key=value`.
Relative paths resolve against the working directory. For completion in an editor, put
`# yaml-language-server: $schema=../docs/recipe.schema.json` on the first line of a recipe.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, field in Recipe.model_fields.items():
        models = _models(field.annotation)
        if not models:
            parts.append(f"## {name}\n\n| key | values | default | meaning |\n|---|---|---|---|\n{_row(name, field)}\n")
        for model in models:
            kind = model.model_fields.get("kind")
            title = f"{name} (kind: {_kind(kind)})" if kind and len(models) > 1 else name
            parts.append(f"## {title}\n\n{_about(model)}{_table(model)}\n")
    return "\n".join(parts)


def schema() -> str:
    """JSON Schema (draft 2020-12) of a recipe."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


def _kind(field: FieldInfo) -> str:
    return str((get_args(field.annotation) or (OWN,))[0])


def _about(model: type[BaseModel]) -> str:
    return f"{model.__doc__.strip()}\n\n" if model.__doc__ and "__doc__" in vars(model) else ""


def _table(model: type[BaseModel], prefix: str = "", *, optional: bool = False) -> str:
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"] if not prefix else []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        nested = _models(field.annotation)
        absent = field.default is None
        listed = _in_list(field.annotation)
        if not nested or listed:
            rows.append(_row(key, field, optional=optional))
        if nested:
            rows.append(_table(nested[0], f"{key}[]." if listed else f"{key}.", optional=absent))
    return "\n".join(rows)


def _row(key: str, field: FieldInfo, *, optional: bool = False) -> str:
    required = f"required with `{key.split('.')[0]}`" if optional else "required"
    default = required if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"
    return f"| `{key}` | {_values(field)} | {default} | {field.description or ''} |"


def _values(field: FieldInfo) -> str:
    bounds = [b for m in field.metadata if (b := _bound(m))]
    return _type(field.annotation).replace("|", "or") + (f" {', '.join(bounds)}" if bounds else "")


def _bound(constraint: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "pattern": "matching"}
    bounds = {sign: getattr(constraint, name, None) for name, sign in signs.items()}
    return " ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound not in (None, BEYOND))


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        inner, *constraints = get_args(annotation)
        bounds = [b for c in constraints for m in getattr(c, "metadata", [c]) if (b := _bound(m))]
        return " ".join([_type(inner), *bounds])
    if get_origin(annotation) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_args(annotation):
        return " | ".join("null" if a is type(None) else _type(a) for a in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "sections as below"
    names = {int: "integer", float: "number", str: "text", bool: "`true` | `false`"}
    return names.get(annotation, str(annotation))


def _in_list(annotation: Any) -> bool:
    """A section that may come several times."""
    inside = get_args(annotation)
    return bool(_models(annotation)) and (get_origin(annotation) is list or any(_in_list(a) for a in inside))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for a in get_args(annotation) for model in _models(a)]


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    (docs / "recipes.md").write_text(reference(), encoding="utf-8")
    (docs / "recipe.schema.json").write_text(schema(), encoding="utf-8")
