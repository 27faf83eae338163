"""The sessions of one `stoker train`: a new one when Ray itself has broken, as long as the run gets on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger
from cluster.run.run_events import CheckpointPublished, Fault
from cluster.run.run_folder import RunFolder
from cluster.session.session_main import SessionPlan
from cluster.session.session_process import Message, SessionProcess, wait_for_guard
from cluster.workers.failure_count import Failures
from configs.errors import EXIT_FAILED

__all__ = ["Failure", "run_sessions"]


_POLL_S = 0.25


@dataclass(frozen=True)
class Failure:
    """Why the workers cannot go on, in one line."""

    message: str
    exit_code: int = EXIT_FAILED


class Polled(Protocol):
    """What else is looked at a few times a second."""

    def poll(self) -> None:
        """What it raises ends the session."""


def run_sessions(plan: SessionPlan, folder: RunFolder, watch: Polled, say: Callable[[str], None]) -> Failure | None:
    """Until the workers have returned, or failed for good. What `watch` raises ends the session at once.

    `say` takes lines for the user.
    """
    failures, most = Failures(), int(plan.workers["max_failures"])
    while True:
        last = _run_session(replace(plan, failures=failures.encode()), folder, watch, say)
        wait_for_guard(Path(plan.folder))
        if "done" in last:
            return None
        if "failed" in last:
            return Failure(last["failed"], last["exit_code"])
        cause = last.get("broken", "its process has died")
        _record(plan, folder, cause)
        failures = failures.another(_committed(folder))
        if failures.count > most:
            return Failure(f"Ray broke {failures.count} times without a newer checkpoint in between: {cause}")
        say(f"Ray broke ({cause}): starting it again")


def _run_session(plan: SessionPlan, folder: RunFolder, watch: Polled, say: Callable[[str], None]) -> Message:
    """The last message of one session; {} when it died without one."""
    session = SessionProcess("cluster.session.session_main", plan.encode(), folder.session_log)
    last: Message = {}
    try:
        while True:
            ended = session.ended  # before reading: nothing comes after it
            for message in session.receive():
                if "say" in message:
                    say(message["say"])
                elif "tick" not in message:
                    last = message
            watch.poll()
            if ended or last:
                break
            if session.silent:
                last = {"broken": "its process does not answer"}
            time.sleep(_POLL_S)
    finally:
        session.kill()
    return last


def _record(plan: SessionPlan, folder: RunFolder, cause: str) -> None:
    ledger = Ledger(folder.ledger)
    place = FaultPlace(attempt=ledger.attempts(), invocation=plan.order["invocation"], log=str(folder.session_log))
    ledger.append(Fault.seen("RayBroken", cause, place))


def _committed(folder: RunFolder) -> int:
    events = Ledger(folder.ledger).events()
    return max((event.step for event in events if isinstance(event, CheckpointPublished)), default=0)
