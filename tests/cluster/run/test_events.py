"""The vocabulary of the ledger: every kind of event, written and read back, and what is read of other versions."""

from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest

from cluster.run import job_events, run_events
from cluster.run.events import SPREAD, Event, UnknownEvent, job_of, step_of
from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger, read_event, read_json_lines
from cluster.run.run_events import CheckpointPublished, Fault, Validated, Warned
from configs.errors import EXIT_FAILED, EXIT_USER, DataError, NonFiniteError

KINDS = [
    kind
    for module in (run_events, job_events)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind.event
]
VALUES: dict[Any, Any] = {int: 3, float: 2.5, str: "text", bool: True, list: ["a"], dict: {"key": 1.5}}


def _value(kind: Any) -> Any:
    """Of a union, one of its first member."""
    first = get_args(kind)[0] if isinstance(kind, UnionType) else kind
    return VALUES[get_origin(first) or first]


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


def _types(kind: Any) -> tuple[type, ...]:
    members = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return tuple(get_origin(member) or member for member in members)


@pytest.mark.parametrize("value", [None, 5, "text", ["a"], {"a": 1}, True, 1.5], ids=repr)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.event)
def test_a_value_of_another_type_is_made_to_fit_or_left_out(kind: type[Event], value: Any) -> None:
    found = read_event({"event": kind.event, **{each.name: value for each in fields(kind)}})
    for each in fields(kind):
        read = getattr(found, each.name)
        types = _types(each.type)
        fits = isinstance(read, types) or (float in types and isinstance(read, int))
        assert fits or (read is None and each.default is None), (each.name, read)


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('5\n["a"]\n"x"\nnull\n{"event": 7}\n{"event": "queued", "job": 12}\n{"torn')
    events = Ledger(path).events()
    assert [event.name for event in events] == ["7", "queued"]
    assert job_of(events[1]) == "12"


def test_no_two_kinds_of_event_have_one_name() -> None:
    assert len({kind.event for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.event)
def test_a_line_of_an_older_version_lacks_what_it_lacks(kind: type[Event]) -> None:
    found = read_event({"event": kind.event})
    assert type(found) is kind
    given = {"workers": 1, "exit_code": EXIT_FAILED}  # what is meant where nothing is said
    seen = {each.name: getattr(found, each.name) for each in fields(kind)}
    assert all(value == given[name] if value else True for name, value in seen.items()), seen
    assert all(isinstance(value, _types(each.type)) for each in fields(kind) if (value := seen[each.name]) is not None)
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
    assert step_of(Warned(message="slow", details={"kind": "straggler", "step": 12})) == 12
    assert Validated(step=8, sample=None, figures={"val_loss": 1.5}).to_line() == (
        {"event": "validated", "time": 0.0, "step": 8, "sample": None, "val_loss": 1.5}
    )


KEYS = {
    "attempt_started": "workers host pid hosts pids since_command_s process_started",
    "initialised": "path sha256 seconds",
    "resumed": "step seconds bytes",
    "first_step": "step seconds",
    "step_skipped": "step loss_scale",
    "sample_skipped": "step split rank shard key cause",
    "bad_number": "step cause value limit message policy left_out keys",
    "checkpoint_skipped": "step",
    "left": "step data_wait_s checkpoint_s validation_s",
    **dict.fromkeys(("finished", "stopped", "data_fault", "rolled_back", "resized", "preempted"), "step reason"),
}
KEYS = {kind: f"attempt invocation {keys}" for kind, keys in KEYS.items()} | {
    "command": "started invocation workers",
    "command_ended": "invocation failure exit_code",
    **dict.fromkeys(("waiting", "room"), "invocation since room"),
    "failure_not_counted": "hosts in_a_row invocation",
    "chaos": "fault phase rank invocation",
    "submitted": "job nodes partition",
    **dict.fromkeys(("queued", "cancelled"), "job"),
    "job_started": "job restarts hosts",
    "warned": "signal job",
    "requeued": "job reason excluded",
    "job_ended": "job code reason",
    **dict.fromkeys(("host_lost", "host_unfit"), "host job cause"),
    "host_back": "host job",
    "hosts_checked": "job hosts all_reduce_bytes_per_s",
}


@pytest.mark.parametrize(("kind", "keys"), KEYS.items(), ids=lambda value: value.partition(" ")[0])
def test_a_kind_of_event_has_the_keys_that_it_always_had(kind: str, keys: str) -> None:
    (found,) = (each for each in KINDS if each.event == kind)
    line = found(**{each.name: _value(each.type) for each in fields(found) if each.name != "time"}).to_line()
    assert " ".join(line) == f"event time {keys}"


def test_a_fault_is_final_where_it_would_only_come_again_and_an_echo_where_another_rank_is_the_cause() -> None:
    place = FaultPlace(attempt=2, invocation="a", rank=1, host="n1", step=7, phase="forward", log="rank-1.log")
    mistake = Fault.of(DataError("a.tar is torn"), place)
    assert (mistake.kind, mistake.final, mistake.echo, mistake.exit_code) == ("DataError", True, False, EXIT_USER)
    lost = Fault.of(RuntimeError("[/x/gloo/transport/tcp/pair.cc:1] Connection closed by peer"), place)
    assert (lost.final, lost.echo, lost.exit_code, lost.step) == (False, True, 1, 7)
    assert Fault.of(NonFiniteError("the loss is nan", 5), place).step == 5
    died = Fault.seen("WorkerDied", "rank 1 was ended by SIGKILL", place)
    assert "echo" not in died.to_line() and "pid" not in died.to_line() and died.to_line()["rank"] == 1
