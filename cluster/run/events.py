"""What an event of ledger.jsonl is, and its line to and from JSON; the kinds are in run_events.py and job_events.py.

A line is `{"event": …, "time": …}` and then a class's fields in their order; a field whose default is None is left out
where it is None. Reading is lenient, as runs outlive versions and files are damaged: what a line lacks, or has of
another type, is empty (or as `if_missing` says), and a kind that this version does not know is an `UnknownEvent`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_origin

__all__ = ["Event", "attempt_of", "invocation_of", "job_of", "step_of"]


SPREAD = {"spread": True}  # for a field whose entries stand in the line themselves
_IF_MISSING = "if missing"


def if_missing(value: Any) -> Any:
    """A field that must be given, and is `value` where a line lacks it."""
    return field(metadata={_IF_MISSING: value})


class _Column(NamedTuple):
    """One field, as lines are read and written."""

    name: str
    types: tuple[type, ...]
    empty: Any
    is_spread: bool
    is_optional: bool  # left out where it is None

    def read(self, line: Mapping[str, Any]) -> Any:
        value = line.get(self.name, MISSING)
        if isinstance(value, self.types) or (float in self.types and isinstance(value, int)):
            return value
        if value is MISSING or str not in self.types:
            return self.empty
        return str(value)  # a number where a name should be


_OF_KIND: dict[type, list[_Column]] = {}  # a ledger of a long run is read often: worked out once


def _columns(kind: "type[Event]") -> list[_Column]:
    if kind not in _OF_KIND:
        _OF_KIND[kind] = [_column(each) for each in fields(kind)]
    return _OF_KIND[kind]


def _column(each: Field[Any]) -> _Column:
    types = _types_of(each.type)
    empty = each.metadata.get(_IF_MISSING, _empty(each.default, types))
    return _Column(each.name, types, empty, each.metadata == SPREAD, each.default is None)


def _types_of(annotation: Any) -> tuple[type, ...]:
    """`int | None` -> (int, NoneType); `list[str]` -> (list,)."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return tuple(get_origin(member) or member for member in members)


def _empty(default: Any, types: tuple[type, ...]) -> Any:
    if default is not MISSING:
        return default
    return None if NoneType in types else types[0]()


@dataclass(frozen=True, kw_only=True)
class Event:
    """`time`: seconds since 1970, put in when it is written."""

    event: ClassVar[str] = ""
    time: float = 0.0

    @property
    def name(self) -> str:
        """What `event` says in the line."""
        return self.event

    def to_line(self) -> dict[str, Any]:
        """As the ledger has it."""
        line: dict[str, Any] = {"event": self.event, "time": self.time}
        for column in _columns(type(self)):
            value = getattr(self, column.name)
            if column.is_spread:
                line |= value
            elif not (value is None and column.is_optional):
                line[column.name] = value
        return line

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Self:
        """An event of this class, from its line; never fails."""
        columns = _columns(cls)
        found = {column.name: column.read(line) for column in columns if not column.is_spread}
        for column in columns:
            if column.is_spread:
                found[column.name] = {key: value for key, value in line.items() if key not in found and key != "event"}
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """Of another version of Stoker."""

    line: dict[str, Any]

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Self:
        time = line.get("time")
        return cls(time=time if isinstance(time, int | float) else 0.0, line=dict(line))

    @property
    def name(self) -> str:
        return str(self.line.get("event"))

    def to_line(self) -> dict[str, Any]:
        return self.line


def invocation_of(event: Event) -> str | None:
    """The `stoker train` that an event belongs to; events of the world outside, such as Slurm's, have none."""
    return _text(event, "invocation")


def attempt_of(event: Event) -> int | None:
    """The attempt that an event belongs to, if any."""
    return _number(event, "attempt")


def step_of(event: Event) -> int | None:
    """The step that an event is about, if any."""
    return _number(event, "step")


def job_of(event: Event) -> str | None:
    """The Slurm job that an event is about, if any."""
    return _text(event, "job")


def _text(event: Event, name: str) -> str | None:
    value = _value(event, name)
    return None if value is None else str(value)


def _number(event: Event, name: str) -> int | None:
    value = _value(event, name)
    return value if isinstance(value, int) else None


def _value(event: Event, name: str) -> Any:
    if isinstance(event, UnknownEvent):
        return event.line.get(name)
    spread = (getattr(event, column.name) for column in _columns(type(event)) if column.is_spread)
    return getattr(event, name, None) if hasattr(event, name) else next((d[name] for d in spread if name in d), None)
