"""How a command ended, in one line: what happened, where, the first cause among the ranks, and what to do. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.run.events import Event, attempt_of, invocation_of, step_of
from cluster.run.run_events import (
    AttemptStarted,
    CheckpointPublished,
    CommandEnded,
    CommandStarted,
    Fault,
    Finished,
    Resumed,
    Stopped,
)
from configs.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER

__all__ = ["verdict"]


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
        """For people: the cause, the place and what to do, in one line."""
        between = " " if self.what == "stopped" else ": "
        head = between.join(part for part in (self.what, self.cause) if part)
        return head + (f" ({self.where})" if self.where else "") + (f"; {self.advice}" if self.advice else "")


def verdict(
    events: Sequence[Event], *, running: bool = False, failure: str | None = None, exit_code: int = EXIT_FAILED
) -> Verdict:
    """Of the last command in the ledger; `failure`, `exit_code`: what its launcher says, if it is not in the ledger."""
    events = last_command(events)
    if not events:
        return Verdict("not started")
    if running:
        return Verdict("running", exit_code=EXIT_DONE)
    if final := next((event for event in events if isinstance(event, Fault) and event.final), None):
        return _failed(final, 1)
    ends = Finished | Stopped | AttemptStarted
    last = next((event for event in reversed(events) if isinstance(event, ends)), None)
    if failure is None and isinstance(last, Finished):
        return Verdict("finished", f"step {last.step}", exit_code=EXIT_DONE)
    if failure is None and isinstance(last, Stopped):
        kept = f"after step {last.step} with a checkpoint" if last.step else "before the first step"
        advice = "the same command goes on from there"
        return Verdict("stopped", f"by {last.reason} {kept}", advice=advice, exit_code=EXIT_REQUEUE)
    return _broken(events, failure, exit_code)


def _broken(events: Sequence[Event], failure: str | None, exit_code: int) -> Verdict:
    """A command that did not come to its end."""
    ended = next((event for event in events if isinstance(event, CommandEnded)), None)
    faults = _since_progress(events)
    if failure is None and ended is None:  # its launcher said nothing
        at = f"the last event was `{events[-1].name}`" + _at(events[-1])
        return Verdict("died", f"`stoker train` was killed, or its host went down; {at}", advice=_GO_ON)
    if failure is None and ended is not None:
        failure, exit_code = ended.failure, ended.exit_code
    if causes := [fault for fault in faults if not fault.echo]:
        return _failed(causes[0], len({fault.attempt for fault in faults}))
    said = failure or "the workers left without telling how it ended"
    if faults:
        said += "; no rank told of a cause, only of lost connections: killed from outside, or out of memory"
        return Verdict("failed", said, _where(faults[0]), _KILLED, exit_code)
    return Verdict("failed", said, "", f"logs/ in the run folder has what was written; {_GO_ON}", exit_code)


def _failed(fault: Fault, attempts: int) -> Verdict:
    kind, final, message = fault.kind or "fault", fault.final, " ".join(fault.message.split())
    cause = message if final else f"{kind}: {message}" if message else kind
    if attempts > 1:
        cause += f"; the first of {attempts} attempts that failed without a newer checkpoint"
    advice = "" if final else _advice(kind, message)  # messages of Stoker's own errors say what to do
    exit_code = fault.exit_code or EXIT_FAILED
    where = "" if exit_code == EXIT_USER else _where(fault)  # the user's mistake is the same on every rank
    return Verdict("failed", cause, where, advice, exit_code)


def _advice(kind: str, message: str) -> str:
    if kind == "WorkerDied":
        return _KILLED if "SIGKILL" in message else _CRASHED
    if any(words in message.lower() for words in ("out of memory", "can't allocate memory", "cannot allocate memory")):
        return _MEMORY
    return _ADVICE.get(kind, _RAISED)


def last_command(events: Sequence[Event]) -> Sequence[Event]:
    """The events from the last `command` on, without those of workers that an earlier one left behind."""
    starts = [index for index, event in enumerate(events) if isinstance(event, CommandStarted)]
    if not starts:
        return events
    own = (None, invocation_of(events[starts[-1]]))  # Slurm's events have none
    return [event for event in events[starts[-1] :] if invocation_of(event) in own]


def _since_progress(events: Sequence[Event]) -> list[Fault]:
    """Faults after the last checkpoint that was newer than all before, as they came."""
    newest, attempt, faults = -1, 0, list[Fault]()
    for event in events:
        if isinstance(event, Resumed):
            newest = max(newest, event.step)
        if isinstance(event, CheckpointPublished) and event.step > newest:
            newest, attempt, faults = event.step, event.attempt or 0, []
        elif isinstance(event, Fault) and (event.attempt is None or event.attempt >= attempt):
            faults.append(event)  # one of an earlier attempt may come late, of a host that was lost
    return faults


def _where(fault: Fault) -> str:
    names = ("rank", "host", "step", "phase", "attempt", "log")
    known = {name: value for name in names if (value := getattr(fault, name)) not in (None, "")}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def _at(event: Event) -> str:
    known = {"attempt": attempt_of(event), "step": step_of(event)}
    parts = [f"{name} {value}" for name, value in known.items() if value is not None]
    return f" ({', '.join(parts)})" if parts else ""
