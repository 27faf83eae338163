"""Ends every process of the Unix sessions that Ray was started in, and no other process."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["UnixSession", "end_unix_sessions"]


_TERM_GRACE_S = 1.0
_KILL_POLL_S = 0.2
_MEMBER_POLL_S = 0.05


@dataclass(frozen=True)
class UnixSession:
    """A Unix session (setsid(2)) by its leader: id and start time (clock ticks since boot), unlike any other's."""

    leader: int
    started_ticks: int

    @classmethod
    def of(cls, leader: int) -> "UnixSession":
        """The Unix session that the live child `leader` of this process leads."""
        stat = _stat(leader)
        assert stat is not None, leader
        return cls(leader, stat.started_ticks)


def live_members(unix_sessions: list[UnixSession]) -> list[int]:
    """Ids of the live processes of `unix_sessions`, those included that left their parent or group."""
    own = {session.leader for session in unix_sessions if _is_same(session)}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _stat(int(folder.name))) and stat.session in own and stat.state != "Z":
            found.append(int(folder.name))
    return found


def end_unix_sessions(unix_sessions: list[UnixSession], *, grace_s: float) -> None:
    """Wait `grace_s` for their processes to leave by themselves, then terminate, then kill them."""
    _wait(unix_sessions, grace_s)
    _send(signal.SIGTERM, unix_sessions)
    _wait(unix_sessions, _TERM_GRACE_S)
    # Again and again: a process may have forked after /proc was read.
    while live_members(unix_sessions):
        _send(signal.SIGKILL, unix_sessions)
        _wait(unix_sessions, _KILL_POLL_S)


def _send(number: signal.Signals, unix_sessions: list[UnixSession]) -> None:
    for pid in live_members(unix_sessions):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(unix_sessions: list[UnixSession], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while live_members(unix_sessions) and time.monotonic() < deadline:
        time.sleep(_MEMBER_POLL_S)


def _is_same(session: UnixSession) -> bool:
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
