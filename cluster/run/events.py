"""What an event of ledger.jsonl is, and its line to and from JSON; the kinds are in run_events.py and job_events.py.

A line is `{"event": …, "time": …}` and then a class's fields in their order; a field whose default is None is left out
where it is None. Reading is lenient, as runs outlive versions: what an older line lacks is empty, and a kind that this
version does not know is an `UnknownEvent`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Self, get_origin

__all__ = ["Event", "attempt_of", "invocation_of", "job_of", "step_of"]


_HAVE_EMPTY = (int, float, str, bool, list, dict)
SPREAD = {"spread": True}  # for a field whose entries stand in the line themselves


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
        for each in fields(self):
            value = getattr(self, each.name)
            if each.metadata == SPREAD:
                line |= value
            elif each.name != "time" and not (value is None and each.default is None):
                line[each.name] = value
        return line

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Self:
        """An event of this class, from its line."""
        found = {each.name: line.get(each.name, _empty(each)) for each in fields(cls)}
        rest = {key: value for key, value in line.items() if key not in found and key != "event"}
        found |= {each.name: rest for each in fields(cls) if each.metadata == SPREAD}
        return cls(**found)


def _empty(each: Field[Any]) -> Any:
    """What stands for a field that a line lacks."""
    if each.default is not MISSING:
        return each.default
    kind = get_origin(each.type) or each.type
    return kind() if kind in _HAVE_EMPTY and callable(kind) else None


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """Of another version of Stoker."""

    line: dict[str, Any]

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Self:
        return cls(time=line.get("time", 0.0), line=dict(line))

    @property
    def name(self) -> str:
        return str(self.line.get("event"))

    def to_line(self) -> dict[str, Any]:
        return self.line


def invocation_of(event: Event) -> str | None:
    """The `stoker train` that an event belongs to; events of the world outside, such as Slurm's, have none."""
    found: str | None = _of(event, "invocation")
    return found


def attempt_of(event: Event) -> int | None:
    """The attempt that an event belongs to, if any."""
    found: int | None = _of(event, "attempt")
    return found


def step_of(event: Event) -> int | None:
    """The step that an event is about, if any."""
    found: int | None = _of(event, "step")
    return found


def job_of(event: Event) -> str | None:
    """The Slurm job that an event is about, if any."""
    found: str | None = _of(event, "job")
    return found


def _of(event: Event, name: str) -> Any:
    return event.line.get(name) if isinstance(event, UnknownEvent) else getattr(event, name, None)
