"""ledger.jsonl: what happened to a run, one event a line, only ever appended to."""

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.run import job_events, run_events
from cluster.run.events import Event, UnknownEvent
from cluster.run.run_events import AttemptStarted

__all__ = ["Ledger", "read_json_lines", "strict_json", "without_infinities"]


_KINDS: dict[str, type[Event]] = {
    kind.event: kind
    for module in (run_events, job_events)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind.event
}
_LOCK_S = 2.0  # a process that was stopped while it had the lock must not stop the others


class Ledger:
    """Appends events, each in one write of one line, so that processes of several hosts may share the file.

    A lock around it makes that so on NFS, whose clients append at the end as they last saw it (open(2)).
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: Event) -> None:
        """Write one event durably, with the time of now: it is on disk when this returns. Raises OSError."""
        self._write(strict_json(replace(event, time=time.time()).to_line()) + "\n")

    def _write(self, line: str) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _lock(descriptor)
            if _ends_torn(descriptor):
                line = "\n" + line
            content = line.encode()
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def try_append(self, event: Event, complain: Callable[[str], None]) -> None:
        """As `append`, but a full disk ends nothing: the event is told to `complain` instead."""
        line = strict_json(replace(event, time=time.time()).to_line())
        try:
            self._write(f"{line}\n")
        except OSError as error:
            complain(f"{self._path} cannot be written ({error.strerror}): {line}")

    def events(self) -> list[Event]:
        """All events, oldest first."""
        return [read_event(line) for line in read_json_lines(self._path)]

    def attempts(self) -> int:
        """Attempts that began so far."""
        # Counted as they stand: this is asked once a second, beside the training, and ledgers grow long.
        return sum(line.get("event") == AttemptStarted.event for line in read_json_lines(self._path))


def read_event(line: dict[str, Any]) -> Event:
    """The event of one line of a ledger, whatever its kind."""
    return _KINDS.get(str(line.get("event")), UnknownEvent).from_line(line)


def strict_json(fields: dict[str, Any]) -> str:
    """As RFC 8259 has it, without NaN and Infinity: such a figure is left out; in a list it is null."""
    return json.dumps(without_infinities(fields), allow_nan=False)


def without_infinities(value: Any) -> Any:
    """The same without dictionary entries that are no finite numbers; None for those of lists."""
    if isinstance(value, dict):
        return {key: without_infinities(each) for key, each in value.items() if not _is_infinite(each)}
    if isinstance(value, list | tuple):
        return [without_infinities(each) for each in value]
    return None if _is_infinite(value) else value


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lock(descriptor: int) -> None:
    """Until the file is closed. Without it where there are no locks, which is so on some file systems."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
        except OSError:
            return


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; lines torn by a crash are left out."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [event for line in whole if (event := _parse(line)) is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return event if isinstance(event, dict) else None
