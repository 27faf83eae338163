"""Events of a ledger for tests, by what their lines say."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.run.events import Event
from cluster.run.ledger import read_event


def event(kind: str, **fields: Any) -> Event:
    """One event; what is not given is empty, as on reading an older ledger."""
    return read_event({"event": kind, **fields})


def of_lines(lines: Iterable[Mapping[str, Any]]) -> list[Event]:
    """The events of a whole ledger."""
    return [read_event(dict(line)) for line in lines]
