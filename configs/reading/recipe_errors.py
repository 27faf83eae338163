"""What pydantic finds wrong with a recipe -> one line a key: its name, its place, the remedy, "did you mean"."""

import difflib
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from configs.reading.yaml_source import KeyPath, YamlSource
from configs.recipe import Recipe

__all__ = ["explain_errors", "shown_value"]


def explain_errors(
    errors: list[Any], source: YamlSource, origins: dict[KeyPath, str], root: type[BaseModel] = Recipe
) -> str:
    """One line for each key that is wrong.

    `errors`: pydantic's; `origins`: the override that a key came from; `root`: the schema that knows the keys.
    """
    return "\n".join(_merged([_explain(detail, source, origins, root) for detail in _meant(errors, source.data)]))


def _meant(details: list[Any], data: Any) -> list[Any]:
    """Without those of an alternative (`expected string`) that was not meant: the errors are inside of another."""
    keys = [_real_key(detail, data) for detail in details]

    def outer(detail: Any, key: KeyPath) -> bool:
        return (
            detail["type"] in ("string_type", "list_type")
            and isinstance(detail["input"], dict | list)
            and any(len(other) > len(key) and other[: len(key)] == key for other in keys)
        )

    return [detail for detail, key in zip(details, keys, strict=True) if not outer(detail, key)]


def _merged(lines: list[str]) -> list[str]:
    """Alternatives of one union (`expected string`, `expected list`) become one line."""
    merged: dict[str, list[str]] = {}
    for line in lines:
        what, _, expected = line.partition(": expected ")
        merged.setdefault(what, []).append(expected)
    return [f"{what}: expected {' or '.join(dict.fromkeys(e))}" if e[0] else what for what, e in merged.items()]


def _explain(detail: Any, source: YamlSource, origins: dict[KeyPath, str], root: type[BaseModel]) -> str:
    key = _real_key(detail, source.data)
    where = f"override {origins[key]!r}" if key in origins else source.where(key)
    name = ".".join(map(str, key))
    kind = detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(key, where, source.data, root)
    if kind == "missing":
        return f"{name} is missing ({where}): it has no default, add it"
    if kind == "value_error":  # our own cross-field checks: the message is complete
        return f"{detail['ctx']['error']} ({where})"
    if kind.startswith("union_tag"):
        choices = detail.get("ctx", {}).get("expected_tags", "")
        return _bad_kind(name, where, source.data, key, choices)
    if kind == "model_type":
        return f"{name} is {detail['input']!r} ({where}): expected a section with keys"
    expected = detail["msg"].replace("List should have", "a list of").replace(" after validation", "")
    expected = expected.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{name} is {shown_value(detail['input'])} ({where}): expected {expected}{_hint(detail)}"


def _hint(detail: Any) -> str:
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        close = difflib.get_close_matches(detail["input"], detail["ctx"]["expected"].replace("'", "").split(), 1)
        return f"; did you mean {close[0]}?" if close else ""
    return ""


def _bad_kind(name: str, where: str, data: Any, key: KeyPath, choices: str) -> str:
    found = _at(data, key)
    if not isinstance(found, dict):
        return f"{name} is {shown_value(found)} ({where}): expected a section with keys"
    if "kind" not in found:
        return f"{name}.kind is missing ({where}): choose from {_tags(name)}"
    close = difflib.get_close_matches(str(found["kind"]), choices.replace("'", "").replace(",", "").split(), 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name}.kind is {shown_value(found['kind'])} ({where}): expected {choices}{hint}"


def _tags(section: str) -> str:
    union = Recipe.model_fields[section].annotation
    return ", ".join(_kind_of(model) or "FILE.py:CLASS" for model in _classes(union))


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _classes(inner)]


def _unknown_key(key: KeyPath, where: str, data: Any, root: type[BaseModel]) -> str:
    model = _model_at(key[:-1], data, root)
    known = [f.alias or n for n, f in model.model_fields.items()] if model else []
    close = difflib.get_close_matches(str(key[-1]), known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{'.'.join(map(str, key))} is unknown ({where}); {hint}known: {', '.join(known)}"


def _real_key(detail: Any, data: Any) -> KeyPath:
    """pydantic's location without the tags and alternatives of unions, which are no keys of the recipe."""
    key: list[str | int] = []
    place, loc = data, detail["loc"]
    for index, part in enumerate(loc):
        is_missing = detail["type"] == "missing" and index == len(loc) - 1
        if isinstance(place, dict) and (part in place or is_missing):
            key.append(part)
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int):
            key.append(part)
            place = place[part] if part < len(place) else None
    return tuple(key)


def _at(data: Any, key: KeyPath) -> Any:
    for part in key:
        data = data[part] if isinstance(data, dict) and part in data else None
    return data


def _model_at(key: KeyPath, data: Any, root: type[BaseModel]) -> type[BaseModel] | None:
    """The schema class that owns the keys below `key`."""
    model: type[BaseModel] | None = root
    for part in key:
        if isinstance(part, int):  # the model is that of the list's items
            data = data[part]
            continue
        data = data.get(part) if isinstance(data, dict) else None
        fields = {f.alias or n: f for n, f in model.model_fields.items()} if model else {}
        model = _class_of(fields[str(part)].annotation, data) if str(part) in fields else None
    return model


def _class_of(annotation: Any, data: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    classes = [c for a in get_args(annotation) if (c := _class_of(a, data)) is not None]
    if len(classes) > 1 and isinstance(data, dict):
        return next((c for c in classes if _kind_of(c) == data.get("kind")), None)
    return classes[0] if classes else None


def _kind_of(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind and get_origin(kind.annotation) is Literal else None


def shown_value(value: Any) -> str:
    """As a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
