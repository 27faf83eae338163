"""The vocabulary of the ledger: every kind of event, written and read back, and what is read of other versions."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_origin

import pytest

from cluster.run import job_events, run_events
from cluster.run.events import SPREAD, Event, UnknownEvent
from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger, read_event, read_json_lines
from cluster.run.run_events import CheckpointPublished, Fault, Validated
from configs.errors import EXIT_USER, DataError, NonFiniteError

KINDS = [
    kind
    for module in (run_events, job_events)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind.event
]
VALUES: dict[Any, Any] = {int: 3, float: 2.5, str: "text", bool: True, list: ["a"], dict: {"key": 1.5}}


def _value(kind: Any) -> Any:
    return VALUES.get(get_origin(kind) or kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.event)
def test_every_event_is_read_as_it_was_written(kind: type[Event], tmp_path: Path) -> None:
    given = {each.name: _value(each.type) for each in fields(kind) if each.name != "time"}
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(kind(**given))
    (found,) = ledger.events()
    assert type(found) is kind
    assert {name: getattr(found, name) for name in given} == given
    (line,) = read_json_lines(tmp_path / "ledger.jsonl")
    assert list(line)[:2] == ["event", "time"] and line["event"] == kind.event
    assert found.to_line() == line


def test_no_two_kinds_of_event_have_one_name() -> None:
    assert len({kind.event for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.event)
def test_a_line_of_an_older_version_lacks_what_it_lacks(kind: type[Event]) -> None:
    found = read_event({"event": kind.event})
    assert type(found) is kind
    assert all(not getattr(found, each.name) for each in fields(kind))
    optional = {each.name for each in fields(kind) if each.default is not MISSING or each.metadata == SPREAD}
    assert set(found.to_line()) == {"event", "time"} | {each.name for each in fields(kind)} - optional


def test_an_event_of_a_newer_version_is_kept_as_it_is() -> None:
    line = {"event": "paused", "time": 7.0, "why": ["because"]}
    found = read_event(line)
    assert isinstance(found, UnknownEvent)
    assert (found.name, found.time, found.to_line()) == ("paused", 7.0, line)


def test_lines_have_the_keys_that_they_always_had() -> None:
    seconds = {"data_wait_s": 0.0, "checkpoint_s": 0.0, "validation_s": 0.0}
    saved = CheckpointPublished(
        step=8, seconds=0.5, bytes=9, wait_s=0.0, copy_s=0.1, saved_at=7.0, background=True, **seconds
    )
    assert list(saved.to_line()) == (
        [
            "event",
            "time",
            "step",
            "seconds",
            "bytes",
            "wait_s",
            "copy_s",
            "saved_at",
            "background",
            "data_wait_s",
            "checkpoint_s",
            "validation_s",
        ]
    )
    assert Validated(step=8, sample=None, figures={"val_loss": 1.5}).to_line() == (
        {"event": "validated", "time": 0.0, "step": 8, "sample": None, "val_loss": 1.5}
    )


def test_a_fault_is_final_where_it_would_only_come_again_and_an_echo_where_another_rank_is_the_cause() -> None:
    place = FaultPlace(attempt=2, invocation="a", rank=1, host="n1", step=7, phase="forward", log="rank-1.log")
    mistake = Fault.of(DataError("a.tar is torn"), place)
    assert (mistake.kind, mistake.final, mistake.echo, mistake.exit_code) == ("DataError", True, False, EXIT_USER)
    lost = Fault.of(RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer"), place)
    assert (lost.final, lost.echo, lost.exit_code, lost.step) == (False, True, 1, 7)
    assert Fault.of(NonFiniteError("the loss is nan", 5), place).step == 5
    died = Fault.seen("WorkerDied", "rank 1 was ended by SIGKILL", place)
    assert "echo" not in died.to_line() and "pid" not in died.to_line() and died.to_line()["rank"] == 1
