"""How a command ended, in one line: what happened, where, the first cause among the ranks, and what to do. Pure."""

from dataclasses import dataclass
from typing import Any

from configs.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER

__all__ = ["verdict"]


Event = dict[str, Any]

_GO_ON = "the same command goes on from the last checkpoint"
_MEMORY = f"lower batch.micro, raise zero.stage or give the host more memory; {_GO_ON}"
_ADVICE = {
    "HangError": f"the log has the stack of every rank at that time: see what the named rank waits for; {_GO_ON}",
    "OutOfMemoryError": _MEMORY,
    "MemoryError": _MEMORY,
    "OSError": f"see that the path can be written and has free space; {_GO_ON}",
    "RayBroken": f"the log has what Ray said; {_GO_ON}",
    "HostLost": f"see what became of the host; {_GO_ON}",
}
_KILLED = f"`dmesg` or `journalctl -k` tell of a kill for want of memory: then {_MEMORY}"
_CRASHED = f"the log has the native stacks: mend the cause; {_GO_ON}"
_RAISED = f"the log has the traceback: mend the cause; {_GO_ON}"


@dataclass(frozen=True)
class Verdict:
    """`what` is the state in a word; the rest is empty where there is nothing to say."""

    what: str  # finished, stopped, failed, died, running, not started
    cause: str = ""
    where: str = ""
    advice: str = ""
    exit_code: int = EXIT_FAILED

    def line(self) -> str:
        between = " " if self.what == "stopped" else ": "
        head = between.join(part for part in (self.what, self.cause) if part)
        return head + (f" ({self.where})" if self.where else "") + (f"; {self.advice}" if self.advice else "")


def verdict(
    events: list[Event], *, running: bool = False, failure: str | None = None, exit_code: int = EXIT_FAILED
) -> Verdict:
    """Of the last command in the ledger; `failure`, `exit_code`: what its launcher says, if it is not in the ledger."""
    events = last_command(events)
    if not events:
        return Verdict("not started")
    if running:
        return Verdict("running", exit_code=EXIT_DONE)
    if final := next((event for event in events if event["event"] == "fault" and event.get("final")), None):
        return _failed(final, 1)
    ends = ("finished", "stopped", "attempt_started")
    last = next((event for event in reversed(events) if event["event"] in ends), {"event": None})
    if failure is None and last["event"] == "finished":
        return Verdict("finished", f"step {last['step']}", exit_code=EXIT_DONE)
    if failure is None and last["event"] == "stopped":
        kept = f"after step {last['step']} with a checkpoint" if last["step"] else "before the first step"
        advice = "the same command goes on from there"
        return Verdict("stopped", f"by {last['reason']} {kept}", advice=advice, exit_code=EXIT_REQUEUE)
    return _broken(events, failure, exit_code)


def _broken(events: list[Event], failure: str | None, exit_code: int) -> Verdict:
    """A command that did not come to its end."""
    ended = next((event for event in events if event["event"] == "command_ended"), None)
    faults = _since_progress(events)
    if failure is None and ended is None:  # its launcher said nothing
        at = f"the last event was `{events[-1]['event']}`" + _at(events[-1])
        return Verdict("died", f"`stoker train` was killed, or its host went down; {at}", advice=_GO_ON)
    if failure is None and ended is not None:
        failure, exit_code = ended.get("failure"), ended.get("exit_code", EXIT_FAILED)
    if causes := [fault for fault in faults if not is_echo(fault)]:
        return _failed(causes[0], len({fault.get("attempt") for fault in faults}))
    said = failure or "the workers left without telling how it ended"
    if faults:
        said += "; no rank told of a cause, only of lost connections: killed from outside, or out of memory"
        return Verdict("failed", said, _where(faults[0]), _KILLED, exit_code)
    return Verdict("failed", said, "", f"logs/ in the run folder has what was written; {_GO_ON}", exit_code)


def _failed(fault: Event, attempts: int) -> Verdict:
    kind, final = str(fault.get("kind", "fault")), bool(fault.get("final"))
    message = " ".join(str(fault.get("message", "")).split())
    cause = message if final else f"{kind}: {message}" if message else kind
    if attempts > 1:
        cause += f"; the first of {attempts} attempts that failed without a newer checkpoint"
    advice = "" if final else _advice(kind, message)  # messages of Stoker's own errors say what to do
    exit_code = int(fault.get("exit_code") or EXIT_FAILED)
    where = "" if exit_code == EXIT_USER else _where(fault)  # the user's mistake is the same on every rank
    return Verdict("failed", cause, where, advice, exit_code)


def _advice(kind: str, message: str) -> str:
    if kind == "WorkerDied":
        return _KILLED if "SIGKILL" in message else _CRASHED
    if any(words in message.lower() for words in ("out of memory", "can't allocate memory", "cannot allocate memory")):
        return _MEMORY
    return _ADVICE.get(kind, _RAISED)


def last_command(events: list[Event]) -> list[Event]:
    """The events from the last `command` on, without those of workers that an earlier one left behind."""
    starts = [index for index, event in enumerate(events) if event["event"] == "command"]
    if not starts:
        return events
    invocation = events[starts[-1]].get("invocation")
    return [event for event in events[starts[-1] :] if event.get("invocation", invocation) == invocation]


def _since_progress(events: list[Event]) -> list[Event]:
    """Faults after the last checkpoint that was newer than all before, as they came."""
    newest, attempt, faults = -1, 0, list[Event]()
    for event in events:
        if event["event"] == "resumed":
            newest = max(newest, event["step"])
        if event["event"] == "checkpoint" and event["step"] > newest:
            newest, attempt, faults = event["step"], event.get("attempt", 0), []
        elif event["event"] == "fault" and event.get("attempt", attempt) >= attempt:  # a lost host may be told late
            faults.append(event)
    return faults


def is_echo(fault: Event) -> bool:
    """A lost connection to a rank that broke, as the rank that tells of it knew."""
    return bool(fault.get("echo"))


def _where(fault: Event) -> str:
    names = ("rank", "host", "step", "phase", "attempt", "log")
    return ", ".join(f"{name} {fault[name]}" for name in names if fault.get(name) is not None)


def _at(event: Event) -> str:
    parts = [f"{name} {event[name]}" for name in ("attempt", "step") if event.get(name) is not None]
    return f" ({', '.join(parts)})" if parts else ""
