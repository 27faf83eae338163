"""Where the time went: every second of every command in one class, on histories whose truth is known."""

import itertools
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledger_events import of_lines
from tests.support.training.simulated_run import SimulatedRun
from trainer.history.goodput import Account, LiveAccount
from trainer.history.restarts import restarts
from trainer.history.wall_time_spans import CLASSES, Span, timeline


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_the_classes_are_those_of_the_truth_and_add_up_to_the_wall_time(seed: int) -> None:
    run = SimulatedRun(Random(seed))
    run.run()
    account = Account.of(timeline(of_lines(run.events), *run.metrics()))
    for kind in CLASSES:
        true = [stretch for stretch in run.truth if stretch.kind == kind]
        assert account.seconds[kind] == pytest.approx(sum(s.stop - s.start for s in true)), kind
        held = sum((s.stop - s.start) * s.workers for s in true)
        assert account.worker_seconds[kind] == pytest.approx(held), kind


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.floats(-20.0, 20.0), st.floats(0.0, 60.0))
def test_spans_lie_end_to_end_whatever_the_clocks_say(seed: int, skew_s: float, now_s: float) -> None:
    run = SimulatedRun(Random(seed))
    run.run()
    committed, superseded = run.metrics()
    for line in committed + superseded:  # rank 0's host is ahead or behind
        line["time"] += skew_s
    now = max(event["time"] for event in run.events) + now_s + 20.0
    spans = timeline(of_lines(run.events), committed, superseded, now)
    commands = [e for e in run.events if e["event"] == "command"]
    assert all(span.seconds > 0 for span in spans)
    gaps = [(a, b) for a, b in itertools.pairwise(spans) if a.stop != b.start]
    assert len(gaps) <= len(commands) - 1  # only while no command was there
    assert spans[-1].stop == now
    assert sum(Account.of(spans).seconds.values()) == pytest.approx(
        spans[-1].stop - spans[0].start - sum(b.start - a.stop for a, b in gaps)
    )


def test_a_killed_driver_ends_with_its_last_sign_and_a_queue_holds_no_worker() -> None:
    events = [
        {"event": "queued", "time": 0.0, "job": 7},
        {"event": "job_started", "time": 100.0, "job": 7},
        {"event": "command", "time": 103.0, "started": 102.0, "workers": 2, "invocation": "a"},
        {"event": "attempt_started", "time": 110.0, "workers": 2, "attempt": 1, "invocation": "a"},
        {"event": "first_step", "time": 115.0, "seconds": 3.0, "step": 1, "attempt": 1, "invocation": "a"},
        {"event": "host_lost", "time": 900.0, "host": "n1"},
    ]
    line = {"step": 10, "time": 130.0, "attempt": 1, "data_wait_s": 4.0, "checkpoint_s": 0.0, "validation_s": 1.0}
    account = Account.of(timeline(of_lines(events), [line], []))
    assert {kind: s for kind, s in account.seconds.items() if s} == {
        "queue": 100.0,
        "start": 12.0,
        "data_wait": 4.0,
        "validation": 1.0,
        "step": 13.0,
    }
    assert account.worker_seconds["queue"] == 0.0
    assert sum(account.worker_seconds.values()) == 2 * 30.0


def test_a_wait_for_nodes_that_has_not_ended_is_in_the_queue_until_now() -> None:
    events = [
        {"event": "command", "time": 103.0, "started": 102.0, "workers": 2, "invocation": "a"},
        {"event": "waiting", "time": 115.0, "since": 110.0, "room": 1, "invocation": "a"},
    ]
    account = Account.of(timeline(of_lines(events), [], [], now=150.0))
    assert {kind: s for kind, s in account.seconds.items() if s} == {"start": 8.0, "queue": 40.0}
    assert account.worker_seconds["queue"] == 0.0


def test_going_back_is_lost_work_and_a_restart() -> None:
    def told(event: str, time: float, attempt: int, **fields: object) -> dict[str, Any]:
        return {"event": event, "time": time, "attempt": attempt, "invocation": "a", **fields}

    saved = {"saved_at": 115.0, "wait_s": 0.0, "copy_s": 1.0, "background": True}
    events = [
        {"event": "command", "time": 100.0, "started": 100.0, "workers": 1, "invocation": "a"},
        told("attempt_started", 104.0, 1, workers=1),
        told("first_step", 106.0, 1, seconds=1.0, step=1),
        told("checkpoint", 117.0, 1, step=5, **saved),
        told("bad_number", 120.0, 1, step=8, left_out=True),
        told("rolled_back", 121.0, 1, step=8, reason="the loss is nan"),
        told("attempt_started", 130.0, 2, workers=1),
        told("resumed", 133.0, 2, step=5, seconds=1.0),
        told("first_step", 134.0, 2, seconds=1.0, step=6),
        told("left", 140.0, 2, step=10),
    ]
    seconds = Account.of(timeline(of_lines(events), [], [])).seconds
    expected = {"start": 7.0, "restore": 1.0, "step": 17.0, "checkpoint": 1.0, "lost": 5.0, "down": 9.0}
    assert {kind: spent_s for kind, spent_s in seconds.items() if spent_s} == expected
    assert sum(expected.values()) == 40.0


def test_the_live_account_counts_each_second_once_though_two_ranks_waited_at_a_time() -> None:
    live = LiveAccount(Account.of([Span(0.0, 10.0, "start", 1)]), now=10.0, workers=2)
    live.add({"data_wait": 2.0, "checkpoint": 1.0}, now=20.0)
    live.add({"data_wait": 9.0, "checkpoint": 3.0}, now=26.0)
    assert live.account.seconds["step"] == 7.0
    assert live.account.wall_s == pytest.approx(26.0)
    assert live.figures()["goodput"] == pytest.approx(7 / 26)
    assert live.figures()["worker_goodput"] == pytest.approx(14 / 42)


def test_a_restart_is_told_from_the_fault_to_the_step_where_it_was_again() -> None:
    broken = {"attempt": 1, "step": 17}
    events = [
        {"event": "command", "time": 0.0, "invocation": "a"},
        {"event": "attempt_started", "time": 5.0, "attempt": 1, "workers": 2},
        {"event": "fault", "time": 50.0, "kind": "RuntimeError", "rank": 0, "message": "gloo", "echo": True, **broken},
        {"event": "fault", "time": 50.5, "kind": "WorkerDied", "rank": 1, **broken},
        {"event": "attempt_started", "time": 53.0, "process_started": 52.0, "attempt": 2, "workers": 2},
        {"event": "resumed", "time": 54.5, "seconds": 0.5, "step": 15, "attempt": 2},
        {"event": "first_step", "time": 55.5, "seconds": 0.9, "step": 16, "attempt": 2},
    ]
    lines = [{"step": step, "time": 40.0 + step, "attempt": 2} for step in (16, 17, 18)]
    restart = restarts(of_lines(events), lines)[0]
    assert (restart.down_s, restart.join_s, restart.start_s, restart.restore_s) == (2.0, 1.0, 1.0, 0.5)
    assert (restart.first_step_s, restart.replay_s, restart.total_s) == (1.0, 1.5, 5.5)
    assert restart.line().startswith(
        "attempt 2 after WorkerDied on rank 1 at step 17, resumed from step 15: 5.5 s to the first step: down 2.0 s"
    )
    going_back = {"event": "rolled_back", "time": 51.0, "attempt": 1, "step": 17, "reason": "the loss is nan"}
    left = restarts(of_lines(going_back if event["event"] == "fault" else event for event in events), lines)[0]
    assert (left.fault, left.step, left.total_s) == ("going back (the loss is nan)", 17, 4.5)
    unfinished = restarts(of_lines(events[:-2]), [])[0]
    assert (unfinished.down_s, unfinished.total_s) == (2.0, None)
