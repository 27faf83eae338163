"""Reading YAML so that every key knows its line, and every scalar its YAML 1.2 type."""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from configs.errors import RecipeError

__all__ = ["KeyPath", "YamlSource", "parse_value", "read_source"]


KeyPath = tuple[str | int, ...]
_MOST_VALUES = 100_000
_SHOWN = 60
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars: 3e-4 is a number, `on` and `yes` are words, 1:30 is no number."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the base class's own attribute, filled below
    # Without dates, sets and others that no recipe has.
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in _TYPES))
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # a value with an explicit tag, as in `!!bool maybe`
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{_cut(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from error


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Decimal, also with leading zeros, which YAML 1.1 reads as octal."""
    try:
        return int(str(node.value).replace("_", ""), 10)
    except ValueError:
        problem = f"{_cut(node.value)} is no integer, or too large"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


@dataclass
class YamlSource:
    """A parsed recipe: plain data, and where each key stands."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, key: KeyPath) -> str:
        """`file:line` of the key or of its nearest known parent."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return str(self.path)


def parse_value(text: str, where: str) -> Any:
    """One override's value, typed as the recipe file would type it. Raises RecipeError, which names `where`."""
    return _parse(text, YamlSource(Path(where), {}))


def read_source(path: Path) -> YamlSource:
    """Parse the file. Raises RecipeError naming file and line for unreadable, malformed or duplicate content."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecipeError(f"recipe {path} cannot be read: {reason}; give the path of a YAML file") from error
    source = YamlSource(path, {})
    data = _parse(text, source)
    if not isinstance(data, dict):
        raise RecipeError(
            f"recipe {path} is empty or not a mapping: expected sections such as run:, model:, data:, batch:"
        )
    source.data = data
    return source


def _parse(text: str, source: YamlSource) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _record_lines(node, (), source)
        return loader.construct_document(node)
    except RecursionError:
        raise RecipeError(
            f"{source.path}: sections lie too deep in each other, or one holds itself (an alias, *name, inside of its "
            "anchor): write it out"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source.path}:{mark.line + 1}" if mark else str(source.path)
        problem = str(getattr(error, "problem", error)).partition("\n")[0]
        raise RecipeError(f"{where} is not valid YAML: {problem}") from error


def _record_lines(node: yaml.Node, prefix: KeyPath, source: YamlSource) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*prefix, _key(key_node, source))
            if key in source.lines:
                raise RecipeError(
                    f"{_dotted(key)} is given twice ({source.path}:{source.lines[key]} and "
                    f"{key_node.start_mark.line + 1}): remove one"
                )
            _record(key, key_node, source)
            _record_lines(value_node, key, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _record((*prefix, index), item, source)
            _record_lines(item, (*prefix, index), source)


def _record(key: KeyPath, node: yaml.Node, source: YamlSource) -> None:
    if len(source.lines) >= _MOST_VALUES:  # aliases of aliases may be more than any memory holds
        raise RecipeError(f"{source.path} holds more than {_MOST_VALUES:,} values, its aliases written out: shorten it")
    source.lines[key] = node.start_mark.line + 1


def _key(node: yaml.Node, source: YamlSource) -> str:
    value: Hashable = node.value
    if not isinstance(node, yaml.ScalarNode) or not isinstance(value, str):
        raise RecipeError(f"{source.path}:{node.start_mark.line + 1}: a key must be a plain word")
    return value


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))
