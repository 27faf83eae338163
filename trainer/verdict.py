"""How a command ended, in one line: what happened, where, the first cause among the ranks, and what to do. Pure."""

from dataclasses import dataclass
from typing import Any

from cluster.ray_train import is_consequence
from configs.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE

Event = dict[str, Any]

_GO_ON = "the same command goes on from the last checkpoint"
_ADVICE = {
    "WorkerDied": "look for an out-of-memory kill (`dmesg`, `journalctl -k`), lower batch.micro or give the host more "
    f"memory if so; {_GO_ON}",
    "HangError": f"the log has the stack of every rank at that time: see what the named rank waits for; {_GO_ON}",
    "OutOfMemoryError": f"lower batch.micro or raise zero.stage; {_GO_ON}",
    "OSError": f"see that the path can be written and has free space; {_GO_ON}",
}
_OTHERWISE = f"the log has the traceback: mend the cause; {_GO_ON}"


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


def verdict(events: list[Event], *, running: bool = False, failure: str | None = None) -> Verdict:
    """Of the last command in the ledger; `failure`: what its launcher says of a failure, if it is not in the ledger."""
    events = last_command(events)
    if not events:
        return Verdict("not started")
    kinds = [event["event"] for event in events]
    if running:
        return Verdict("running", exit_code=EXIT_DONE)
    if final := next((event for event in events if event["event"] == "fault" and event.get("final")), None):
        return _failed(final, 1, final=True)
    last = next((kind for kind in reversed(kinds) if kind in ("finished", "stopped", "attempt_started")), None)
    told = next((event for event in reversed(events) if event["event"] == last), {})
    if last == "finished":
        return Verdict("finished", f"step {told['step']}", exit_code=EXIT_DONE)
    if last == "stopped":
        kept = f"after step {told['step']} with a checkpoint" if told["step"] else "before the first step"
        advice = "the same command goes on from there"
        return Verdict("stopped", f"by {told['reason']} {kept}", advice=advice, exit_code=EXIT_REQUEUE)
    return _broken(events, failure)


def _broken(events: list[Event], failure: str | None) -> Verdict:
    """A command that ended without telling how."""
    ended = next((event for event in events if event["event"] == "command_ended"), {})
    failure = failure or ended.get("failure")
    last_fault = next((event for event in reversed(events) if event["event"] in ("fault", "attempt_started")), {})
    if failure is None and not ended and last_fault.get("event") != "fault":
        at = f"the last event was `{events[-1]['event']}`" + _at(events[-1])
        return Verdict("died", f"`stoker train` was killed, or its host went down; {at}", advice=_GO_ON)
    faults = _since_progress(events)
    causes = [fault for fault in faults if not is_echo(fault)]
    if causes:
        return _failed(causes[0], len({fault.get("attempt") for fault in faults}), final=False)
    said = failure or "the workers left without telling how it ended"
    if faults:
        said += "; no rank told of a cause, only of lost connections: killed from outside, or out of memory"
        return Verdict("failed", said, _where(faults[0]), _ADVICE["WorkerDied"])
    return Verdict("failed", said, advice=f"logs/ in the run folder has what the workers wrote; {_GO_ON}")


def _failed(fault: Event, attempts: int, *, final: bool) -> Verdict:
    kind = str(fault.get("kind", "fault"))
    message = " ".join(str(fault.get("message", "")).split())
    cause = message if final else f"{kind}: {message}" if message else kind
    if attempts > 1:
        cause += f" — the first of {attempts} attempts that failed without a newer checkpoint"
    advice = "" if final else _ADVICE.get(kind, _OTHERWISE)  # messages of Stoker's own errors say what to do
    return Verdict("failed", cause, _where(fault), advice, int(fault.get("exit_code") or EXIT_FAILED))


def last_command(events: list[Event]) -> list[Event]:
    """The events from the last `command` on."""
    starts = [index for index, event in enumerate(events) if event["event"] == "command"]
    return events[starts[-1] :] if starts else events


def _since_progress(events: list[Event]) -> list[Event]:
    """Faults after the last checkpoint that was newer than all before, in order of attempt and time."""
    newest, faults = -1, list[Event]()
    for event in events:
        if event["event"] == "resumed":
            newest = max(newest, event["step"])
        if event["event"] == "checkpoint" and event["step"] > newest:
            newest, faults = event["step"], []
        elif event["event"] == "fault":
            faults.append(event)
    return sorted(faults, key=lambda fault: (fault.get("attempt") or 0, fault.get("time") or 0.0))


def is_echo(fault: Event) -> bool:
    """A lost connection to a rank that broke; deaths and hangs are named by who watches, and are none."""
    kind = str(fault.get("kind", ""))
    return kind not in ("WorkerDied", "HangError") and is_consequence(f"{kind} {fault.get('message', '')}")


def _where(fault: Event) -> str:
    names = ("rank", "host", "step", "phase", "attempt", "log")
    return ", ".join(f"{name} {fault[name]}" for name in names if fault.get(name) is not None)


def _at(event: Event) -> str:
    parts = [f"{name} {event[name]}" for name in ("attempt", "step") if event.get(name) is not None]
    return f" ({', '.join(parts)})" if parts else ""
