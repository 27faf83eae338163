"""What a job learns of itself, decides, and asks of Slurm: pure, or against answers that Slurm has given."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from cluster.run.events import Event
from cluster.run.ledger import Ledger
from cluster.slurm import retrying_scheduler
from cluster.slurm.job_environment import SlurmJob, expand_hosts
from cluster.slurm.jobs_of_run import known_state
from cluster.slurm.lost_host_rules import excludable, rejoin_timeout_s, unreliable_hosts
from cluster.slurm.requeue_rules import is_cancelled, may_requeue, requeues_in_a_row
from cluster.slurm.retrying_scheduler import with_retries
from cluster.slurm.scheduler import (
    CommandResult,
    NoAnswerError,
    SlurmCommands,
    fields_of,
    overruled_variables,
    run_command,
    time_left_s,
)
from cluster.slurm_job.job_hosts import JobHosts
from cluster.slurm_job.lost_head import takeover_host
from cluster.slurm_job.supervisor import Supervisor
from configs.checkout import CHECKOUT
from configs.errors import ClusterError
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm, array_tasks, memory_bytes, time_s
from tests.support.ledger_events import event


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
    events = [event("host_lost", host=host, job="7") for host in ("n2", "n3", "n2")]
    assert unreliable_hosts(events, "7") == ["n2"]
    events += [event("host_unfit", host="n4", job="7")]
    assert unreliable_hosts(events, "7") == ["n4", "n2"]
    assert unreliable_hosts([*events, event("submitted", job="7")], "7") == []  # somebody has mended them
    assert unreliable_hosts(events, "8") == []
    assert excludable(["n4", "n2"], lambda hosts: len(hosts) == 1) == ["n4"]


def test_a_first_host_that_all_others_miss_is_no_reason_to_leave_these_out() -> None:
    started = event("job_started", job="7", hosts=["n1", "n2", "n3"])

    def lost(*hosts: str) -> list[Event]:
        return [started, *(event("host_lost", host=host, job="7") for host in hosts)]

    assert unreliable_hosts(lost("n2", "n3") * 2, "7") == []
    assert unreliable_hosts(lost("n1", "n2", "n3") * 2, "7") == ["n1"]
    assert unreliable_hosts(lost("n2", "n3") + lost("n2") * 2, "7") == ["n2"]


def test_requeues_count_since_the_newest_checkpoint_and_for_one_job() -> None:
    kinds = ("requeued", "checkpoint", "requeued", "job_started", "requeued")
    events = [event(kind, job="7") for kind in kinds]
    assert requeues_in_a_row(events, "7") == 2
    assert requeues_in_a_row([*events, event("submitted", job="8")], "8") == 0


def test_a_cancellation_counts_until_the_job_has_ended_by_it() -> None:
    events = [event(kind, job="7") for kind in ("submitted", "job_started", "cancelled", "requeued", "queued")]
    assert is_cancelled(events, "7")
    assert not is_cancelled([*events, event("job_ended", job="7")], "7")
    assert not is_cancelled(events, "8")


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
    hosts = JobHosts(job, Slurm(), Workers(), lambda hosts: False, ledger, lambda line: None)
    supervisor = Supervisor(job, Slurm(), hosts, scheduler, ledger, lambda line: None)
    supervisor._on_signal(signal_name)
    assert supervisor._verdict(status, head_answers=False).requeue is again
    supervisor._on_signal("SIGINT")  # whatever came before it
    assert supervisor._verdict(status, head_answers=False).requeue is False


def test_a_job_without_its_first_host_is_for_the_first_that_is_left() -> None:
    job = {"JobState": "RUNNING", "NodeList": "n[2-3]", "BatchHost": "n1"}
    assert takeover_host(job, "n1") == "n2"
    assert takeover_host({**job, "NodeList": "n[1-3]"}, "n1") is None  # Slurm still reaches it: only we do not
    assert takeover_host({**job, "JobState": "COMPLETING"}, "n1") is None


def test_how_long_a_run_goes_on_without_a_host() -> None:
    workers = Workers(count="2..3")
    assert rejoin_timeout_s(Slurm(on_node_loss="continue"), workers, room=2) is None
    assert rejoin_timeout_s(Slurm(on_node_loss="continue"), workers, room=1) == 15.0
    assert rejoin_timeout_s(Slurm(on_node_loss="wait", wait_s=70), workers, room=2) == 70.0
    assert rejoin_timeout_s(Slurm(), workers, room=2) == 15.0
    assert rejoin_timeout_s(Slurm(), workers, room=3) is None  # the lost one was a spare one
    assert Workers(count="1..2").least == 1


def test_fields_of_scontrol_may_hold_blanks() -> None:
    fields = fields_of("JobId=7 JobName=a b JobState=RUNNING Reason=None EndTime=2026-11-26T02:00:30 Comment=x=1 y")
    assert fields["JobName"] == "a b"
    assert time_left_s(fields, datetime(2026, 11, 26, 2, 0, 0)) == 30.0
    assert time_left_s({"EndTime": "Unknown"}, datetime(2026, 11, 26)) is None


EVENTS = [event("submitted", job="7"), event("job_started", job="7")]
NOTHING = CommandResult(1, "", "slurm_load_jobs error: Invalid job id specified")
AWAY = CommandResult(1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


@pytest.mark.parametrize(
    ("sacct", "squeue", "name", "source"),
    [
        (CommandResult(0, "CANCELLED by 1000|None\n", ""), NOTHING, "CANCELLED", "sacct"),
        (CommandResult(0, "", ""), CommandResult(0, "PENDING|Resources\n", ""), "PENDING", "squeue"),
        (
            CommandResult(1, "", "Slurm accounting storage is disabled"),
            CommandResult(0, "RUNNING|None\n", ""),
            "RUNNING",
            "squeue",
        ),
        (CommandResult(0, "", ""), AWAY, "RUNNING", "the ledger"),
        (CommandResult(0, "", ""), NOTHING, "ENDED", "squeue"),
        (CommandResult(0, "NEWFANGLED|None\n", ""), NOTHING, "NEWFANGLED", "sacct"),
    ],
)
def test_states_come_from_the_accounting_else_the_queue_else_the_ledger(
    sacct: CommandResult, squeue: CommandResult, name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    answers = {"sacct": sacct, "squeue": squeue}

    def execute(command: Sequence[str], text: str = "") -> CommandResult:
        return answers[command[0]]

    state = known_state("7", EVENTS, SlurmCommands(execute))
    assert (state.name, state.source) == (name, source)
    assert state.over is (name == "CANCELLED")


def test_a_job_asks_again_while_slurm_is_away_and_takes_a_no_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_scheduler, "_FIRST_PAUSE_S", 0.01)
    answers = [AWAY, NoAnswerError("scontrol did not answer in 60 s"), CommandResult(0, "JobId=7", "")]
    asked, said = iter(answers), list[str]()

    def execute(command: Sequence[str], text: str = "") -> CommandResult:
        answer = next(asked)
        if isinstance(answer, NoAnswerError):
            raise answer
        return answer

    assert SlurmCommands(with_retries(execute, said.append)).job("7") == {"JobId": "7"}
    assert len(said) == 1
    with pytest.raises(ClusterError, match="Invalid job id"):
        SlurmCommands(with_retries(lambda command, text="": NOTHING, said.append)).job("7")
    with pytest.raises(ClusterError, match="Unable to contact"):
        SlurmCommands(with_retries(lambda command, text="": AWAY, said.append, retry_s=0.5)).job("7")


def test_what_slurm_says_on_either_stream_is_told() -> None:
    refused = SlurmCommands(lambda command, text="": CommandResult(1, "Partition foo not found\n", ""))
    with pytest.raises(ClusterError, match="Partition foo not found"):
        refused.partitions("foo")
    show = SlurmCommands(lambda command, text="": CommandResult(0, f"PartitionName={command[-1]} GraceTime=5\n", ""))
    assert [fields["PartitionName"] for fields in show.partitions("a,b")] == ["a", "b"]


def test_slurms_commands_do_not_see_what_the_shell_says_of_other_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = {"SBATCH_PARTITION": "debug", "SLURM_ARRAY_JOB_ID": "3", "SLURM_CONF": "/etc/slurm.conf"}
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    seen = run_command(["env"]).out.splitlines()
    assert "SLURM_CONF=/etc/slurm.conf" in seen
    assert not [line for line in seen if line.startswith(("SBATCH_", "SLURM_ARRAY"))]
    assert overruled_variables(shell) == ["SBATCH_PARTITION"]


@pytest.mark.parametrize(
    ("status", "said", "taken"),
    [
        (0, "sbatch: Job 7 to start at 2026-11-27T15:00:00", True),
        (1, "allocation failure: Requested node configuration is not available", False),
        (1, "allocation failure: Unable to contact slurm controller (connect failure)", None),
        (1, "allocation failure: Access/permission denied", None),
    ],
)
def test_a_host_is_left_out_only_where_slurm_says_that_there_are_others(
    status: int, said: str, taken: bool | None
) -> None:
    commands = SlurmCommands(lambda command, text="": CommandResult(status, "", said))
    if taken is None:
        with pytest.raises(ClusterError, match=re.escape(said)):
            commands.would_take(Path("job.sbatch"), ["n1"])
    else:
        assert commands.would_take(Path("job.sbatch"), ["n1"]) is taken


def test_a_job_that_an_earlier_checkout_queued_starts_as_one_of_today(tmp_path: Path) -> None:
    said = []
    for module in ("cluster.slurm_job.batch_main", "cluster.slurm_main"):
        command = [sys.executable, "-m", module, str(tmp_path), "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, env={"PATH": os.environ["PATH"]})
        said.append((done.returncode, done.stderr.partition("error: ")[2]))
    assert said[0] == said[1] and said[0][0] == 1 and "SLURM_JOB_ID" in said[0][1], said
