"""ledger.jsonl: what happened to a run, one event a line, only ever appended to."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Ledger:
    """Appends events; each is one write of one line, so that several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: str, **details: Any) -> None:
        """Write one event durably: it is on disk when this returns."""
        line = json.dumps({"event": event, "time": time.time(), **details}) + "\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if _ends_torn(descriptor):
                line = "\n" + line
            content = line.encode()
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def events(self) -> list[Event]:
        """All events, oldest first."""
        return read_json_lines(self._path)

    def attempts(self) -> int:
        """Attempts that began so far."""
        return sum(event["event"] == "attempt_started" for event in self.events())


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def read_json_lines(path: Path) -> list[Event]:
    """The whole lines of a JSON-lines file; lines torn by a crash are left out."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [event for line in whole if (event := _parse(line)) is not None]


def _parse(line: str) -> Event | None:
    try:
        event: Event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event
