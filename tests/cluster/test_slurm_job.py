"""What a job learns of itself, decides, and asks of Slurm: pure, or against answers that Slurm has given."""

import signal
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from cluster.ledger import Ledger
from cluster.slurm_decisions import excludable, may_requeue, patience_s, requeues_in_a_row, unreliable_hosts
from cluster.slurm_job import SlurmJob, expand_hosts
from cluster.slurm_orphan import heir
from cluster.slurm_queue import Answer, SlurmCommands, fields_of, time_left_s
from cluster.slurm_supervisor import Supervisor
from configs.recipe import Workers
from configs.slurm import Slurm, array_tasks, memory_bytes, time_s
from trainer.slurm_jobs import known_state


def test_host_lists_are_written_out_as_slurm_means_them() -> None:
    assert expand_hosts("n[1-2,05]-x,login") == ["n1-x", "n2-x", "n05-x", "login"]
    assert expand_hosts("r[1-2]n[08-10]") == [f"r{rack}n{host}" for rack in (1, 2) for host in ("08", "09", "10")]


def test_a_job_is_read_from_its_environment() -> None:
    environment = {
        **{"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"},
        **{"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "4"},
        "SLURM_MEM_PER_CPU": "2000",
    }
    job = SlurmJob.from_env(environment)
    # Requeueing 12 would requeue every task of the array.
    assert job == SlurmJob("12_3", 2, ("gpu1", "gpu2"), 8, 4, 16000 << 20)


def test_slurms_ways_to_write_numbers() -> None:
    assert [time_s(text) for text in (90, "90:30", "1:00:00", "2-12", "1-02:03")] == [5400, 5430, 3600, 216000, 93780]
    assert [memory_bytes(text) for text in (512, "64G", "1T")] == [512 << 20, 64 << 30, 1 << 40]
    assert array_tasks("0-6:3,9%2") == [0, 3, 6, 9]


def test_a_host_that_failed_twice_is_left_out_as_long_as_there_are_enough_others() -> None:
    events = [{"event": "host_lost", "host": host} for host in ("n1", "n2", "n1")]
    assert unreliable_hosts(events) == ["n1"]
    assert unreliable_hosts([*events, {"event": "host_unfit", "host": "n3"}]) == ["n1", "n3"]
    states = {"n1": "idle", "n2": "allocated", "n3": "down*"}
    assert excludable(["n1"], states, needed=1) == ["n1"]
    assert excludable(["n1"], states, needed=2) == []
    assert excludable(["n3"], states, needed=2) == ["n3"]  # it would not be given anyway


def test_requeues_count_since_the_newest_checkpoint() -> None:
    kinds = ("requeued", "checkpoint", "requeued", "job_started", "requeued")
    assert requeues_in_a_row([{"event": kind} for kind in kinds]) == 2


def test_a_job_that_somebody_else_ended_does_not_requeue_itself() -> None:
    assert may_requeue("RUNNING", "None")
    assert may_requeue("COMPLETING", "TimeLimit")
    assert not may_requeue("COMPLETING", "None")
    assert not may_requeue("CANCELLED", "None")


@pytest.mark.parametrize(("signal_name", "again"), [("SIGUSR2", True), ("SIGINT", False)])
@pytest.mark.parametrize("status", [75, -signal.SIGUSR1, 1])
def test_a_cancelled_run_is_not_requeued_whatever_its_driver_was_doing(
    signal_name: str, again: bool, status: int, tmp_path: Path
) -> None:
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    job, ledger = SlurmJob.from_env(environment), Ledger(tmp_path / "ledger.jsonl")
    scheduler = SlurmCommands(lambda command, text="": NOTHING)
    supervisor = Supervisor(job, Slurm(), Workers(), scheduler, ledger, lambda line: None)
    supervisor._on_signal(signal_name)
    assert supervisor._verdict(status, head_answers=False).requeue is again


def test_a_job_without_its_first_host_is_for_the_first_that_is_left() -> None:
    job = {"JobState": "RUNNING", "NodeList": "n[2-3]", "BatchHost": "n1"}
    assert heir(job, "n1") == "n2"
    assert heir({**job, "NodeList": "n[1-3]"}, "n1") is None  # Slurm still reaches it: only we do not
    assert heir({**job, "JobState": "COMPLETING"}, "n1") is None


def test_how_long_a_run_goes_on_without_a_host() -> None:
    workers = Workers(count="2..3")
    assert patience_s(Slurm(on_node_loss="continue"), workers, room=2) is None
    assert patience_s(Slurm(on_node_loss="continue"), workers, room=1) == 15.0
    assert patience_s(Slurm(on_node_loss="wait", wait_s=70), workers, room=2) == 70.0
    assert patience_s(Slurm(), workers, room=2) == 15.0
    assert patience_s(Slurm(), workers, room=3) is None  # the lost one was a spare one
    assert Workers(count="1..2").least == 1


def test_fields_of_scontrol_may_hold_blanks() -> None:
    fields = fields_of("JobId=7 JobName=a b JobState=RUNNING Reason=None EndTime=2026-11-26T02:00:30 Comment=x=1 y")
    assert fields["JobName"] == "a b"
    assert time_left_s(fields, datetime(2026, 11, 26, 2, 0, 0)) == 30.0
    assert time_left_s({"EndTime": "Unknown"}, datetime(2026, 11, 26)) is None


EVENTS = [{"event": "submitted", "job": "7"}, {"event": "job_started", "job": "7"}]
NOTHING = Answer(1, "", "slurm_load_jobs error: Invalid job id specified")


@pytest.mark.parametrize(
    ("sacct", "squeue", "name", "source"),
    [
        (Answer(0, "CANCELLED by 1000|None\n", ""), NOTHING, "CANCELLED", "sacct"),
        (Answer(0, "", ""), Answer(0, "PENDING|Resources\n", ""), "PENDING", "squeue"),
        (Answer(1, "", "Slurm accounting storage is disabled"), Answer(0, "RUNNING|None\n", ""), "RUNNING", "squeue"),
        (Answer(0, "", ""), NOTHING, "RUNNING", "the ledger"),
        (Answer(0, "NEWFANGLED|None\n", ""), NOTHING, "NEWFANGLED", "sacct"),
    ],
)
def test_states_come_from_the_accounting_else_the_queue_else_the_ledger(
    sacct: Answer, squeue: Answer, name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    answers = {"sacct": sacct, "squeue": squeue}

    def execute(command: Sequence[str], text: str = "") -> Answer:
        return answers[command[0]]

    state = known_state("7", EVENTS, SlurmCommands(execute))
    assert (state.name, state.source) == (name, source)
    assert state.over is (name == "CANCELLED")
