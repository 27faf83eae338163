"""Ends every process of the sessions that Ray was started in, and no other process."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Session", "end"]


@dataclass(frozen=True)
class Session:
    """A session by its leader: process id and start time (clock ticks since boot), which no other process shares."""

    leader: int
    started_ticks: int

    @classmethod
    def of(cls, leader: int) -> "Session":
        """The session that the live child `leader` of this process leads."""
        stat = _stat(leader)
        assert stat is not None, leader
        return cls(leader, stat.started_ticks)


def members(sessions: list[Session]) -> list[int]:
    """Ids of the live processes of `sessions`, orphans included."""
    own = {session.leader for session in sessions if _is_same(session)}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))) and stat.session in own and stat.state != "Z":
            found.append(int(folder.name))
    return found


def end(sessions: list[Session], *, grace_s: float) -> None:
    """Wait `grace_s` for the members to leave by themselves, then terminate, then kill them."""
    _wait(sessions, grace_s)
    _send(signal.SIGTERM, sessions)
    _wait(sessions, 1.0)
    while members(sessions):
        _send(signal.SIGKILL, sessions)
        _wait(sessions, 0.2)


def _send(number: signal.Signals, sessions: list[Session]) -> None:
    for pid in members(sessions):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(sessions: list[Session], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while members(sessions) and time.monotonic() < deadline:
        time.sleep(0.05)


def _is_same(session: Session) -> bool:
    # While a member lives, the number of a leader that is gone is not given to another process.
    stat = _stat(session.leader)
    return stat is None or stat.started_ticks == session.started_ticks


@dataclass(frozen=True)
class _Stat:
    state: str
    session: int
    started_ticks: int


def _stat(pid: int) -> _Stat | None:
    """Fields 3, 6 and 22 of /proc/PID/stat (proc(5)); None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks
    return _Stat(fields[0], int(fields[3]), int(fields[19]))
