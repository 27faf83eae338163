"""The one line that a run ends with: the first cause, not its echoes, with the place and what to do."""

from typing import Any

import pytest

from configs.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_USER
from tests.support.ledger_events import of_lines
from trainer.history.verdict import Verdict, verdict

Event = dict[str, Any]

COMMAND = {"event": "command", "invocation": "b"}
ECHO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2048"


def verdict_of(lines: list[Event], **options: Any) -> Verdict:
    return verdict(of_lines(lines), **options)


def attempt(number: int) -> Event:
    return {"event": "attempt_started", "attempt": number, "workers": 2, "invocation": "b"}


def fault(kind: str, message: str, number: int = 1, **fields: Any) -> Event:
    place = {"attempt": number, "rank": 1, "host": "n2", "step": 7, "phase": "forward", "log": "logs/rank-1.log"}
    return {"event": "fault", "kind": kind, "message": message, "invocation": "b", "final": False, **place, **fields}


def test_a_crash_loop_is_told_by_the_first_cause_of_its_first_attempt() -> None:
    events = [
        COMMAND,
        attempt(1),
        fault("WorkerDied", "rank 0 was ended by SIGKILL"),
        attempt(2),
        {"event": "resumed", "attempt": 2, "step": 5, "invocation": "b"},
        {"event": "checkpoint", "attempt": 2, "step": 10, "invocation": "b"},
        fault("RuntimeError", ECHO, 2, rank=0, echo=True),
        fault("ValueError", "the value\nis odd", 2),
        attempt(3),
        fault("RuntimeError", ECHO, 3, rank=0, echo=True),
        attempt(4),
        fault("WorkerDied", "rank 0 was ended by SIGKILL", 4, rank=0),
        {"event": "command_ended", "exit_code": 1, "failure": "worker 0 failed: Connection closed", "invocation": "b"},
    ]
    told = verdict_of(events)
    assert told.line() == (
        "failed: ValueError: the value is odd; the first of 3 attempts that failed without a newer checkpoint (rank 1, "
        "host n2, step 7, phase forward, attempt 2, log logs/rank-1.log); the log has the traceback: mend the cause; "
        "the same command goes on from the last checkpoint"
    )
    assert told.exit_code == EXIT_FAILED
    assert verdict_of(events[:-1], failure="worker 0 failed").cause == told.cause


@pytest.mark.parametrize(
    ("kind", "message", "advice"),
    [
        ("WorkerDied", "rank 1 on n2 (pid 7) was ended by SIGKILL", "for want of memory"),
        ("WorkerDied", "rank 1 on n2 (pid 7) was ended by SIGSEGV", "native stacks"),
        ("HangError", "rank 1 on n2 has not been heard of for 12 s", "stack of every rank"),
        ("RayBroken", "Ray's raylet has died", "what Ray said"),
        ("OutOfMemoryError", "CUDA out of memory", "lower batch.micro"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried", "lower batch.micro"),
        ("OSError", "[Errno 28] No space left on device", "free space"),
        ("KeyError", "'loss'", "traceback"),
        ("ConnectionError", "database connection refused", "traceback"),
    ],
)
def test_what_to_do_follows_from_the_kind(kind: str, message: str, advice: str) -> None:
    told = verdict_of([COMMAND, attempt(1), fault(kind, message)], failure="worker 1 failed")
    assert told.cause == f"{kind}: {message}"
    assert advice in told.advice
    assert "rank 1, host n2, step 7" in told.line()


@pytest.mark.parametrize("kind", ["NonFiniteError", "DataError", "CheckpointError"])
def test_an_error_of_our_own_says_itself_what_to_do(kind: str) -> None:
    final = fault(kind, "x.tar is torn: pack it again", final=True, exit_code=1)
    told = verdict_of([COMMAND, attempt(1), fault("RuntimeError", ECHO, echo=True), final], failure="worker 0 failed")
    assert told.line() == (
        "failed: x.tar is torn: pack it again (rank 1, host n2, step 7, phase forward, attempt 1, log logs/rank-1.log)"
    )
    mistake = verdict_of([COMMAND, attempt(1), {**final, "exit_code": EXIT_USER}])
    assert (mistake.line(), mistake.exit_code) == ("failed: x.tar is torn: pack it again", EXIT_USER)


def test_every_end_of_a_command_has_its_verdict() -> None:
    stopped = {"event": "stopped", "step": 7, "reason": "a signal", "invocation": "b"}
    finished = {"event": "finished", "step": 9, "reason": "", "invocation": "b"}
    earlier = [{"event": "command", "invocation": "a"}, {"event": "finished", "step": 9, "invocation": "a"}]
    assert verdict_of([]).what == "not started"
    assert verdict_of([*earlier, COMMAND], running=True).what == "running"
    assert (verdict_of([COMMAND, attempt(1), stopped]).exit_code, verdict_of([COMMAND, finished]).exit_code) == (
        EXIT_REQUEUE,
        EXIT_DONE,
    )
    left = verdict_of([COMMAND, attempt(1), stopped]).line()
    assert left.startswith("stopped by a signal after step 7 with a checkpoint")
    died = verdict_of([*earlier, COMMAND, attempt(1), {"event": "checkpoint", "step": 4, "attempt": 1}])
    assert (died.what, "`checkpoint` (attempt 1, step 4)" in died.cause) == ("died", True)
    stale = {"event": "fault", "kind": "ValueError", "message": "late", "final": True, "invocation": "a"}
    assert verdict_of([*earlier, COMMAND, stale, finished]).what == "finished"


def test_what_only_the_launcher_knows_is_told_with_its_exit_code() -> None:
    events = [COMMAND, attempt(1)]
    told = verdict_of(events, failure="no Ray at 10.0.0.1:6379", exit_code=2)
    assert (told.cause, told.exit_code) == ("no Ray at 10.0.0.1:6379", 2)
    ended = {"event": "command_ended", "failure": "no Ray at 10.0.0.1:6379", "exit_code": 2, "invocation": "b"}
    assert verdict_of([*events, ended]) == told
    lost = verdict_of([*events, fault("RuntimeError", ECHO, echo=True)], failure="worker 0 failed")
    assert "no rank told of a cause" in lost.cause
    assert verdict_of([COMMAND, {"event": "fault"}], failure="x").line().startswith("failed: fault; ")
