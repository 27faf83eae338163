"""Slurm's commands behind a Protocol: submit, ask, requeue, cancel."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from configs.errors import ClusterError

COMMAND_TIMEOUT_S = 60.0
_OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class JobState:
    """What Slurm calls the state of a job, and who told. A name that we do not know counts as a job that may go on."""

    name: str
    reason: str = ""
    source: str = ""

    @property
    def over(self) -> bool:
        return self.name in _OVER


class Scheduler(Protocol):
    """What Stoker needs of Slurm. All but `state` raise ClusterError with Slurm's own words."""

    def submit(self, script: str) -> str: ...
    def test(self, script: str) -> str: ...
    def state(self, job: str) -> JobState | None: ...
    def job(self, job: str) -> dict[str, str]: ...
    def requeue(self, job: str) -> None: ...
    def exclude(self, job: str, hosts: Sequence[str]) -> None: ...
    def cancel(self, job: str) -> None: ...
    def interrupt(self, job: str) -> None: ...
    def config(self) -> dict[str, str]: ...
    def partition(self, name: str | None) -> dict[str, str]: ...
    def hosts(self, partition: str | None) -> dict[str, str]: ...
    def node_address(self, host: str) -> str: ...


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    status: int
    out: str
    err: str


def run(command: Sequence[str], text: str = "") -> Answer:
    """Raises ClusterError when there is no such command, or it does not answer."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"there is no {command[0]} here: submit on a host of the Slurm cluster") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"{command[0]} did not answer in {COMMAND_TIMEOUT_S:.0f} s: is Slurm's controller up?"
        ) from error
    return Answer(done.returncode, done.stdout, done.stderr)


class SlurmCommands:
    """The real one. `execute` is the seam: `run`, or what answers in its place."""

    def __init__(self, execute: Callable[..., Answer] = run) -> None:
        self._execute = execute

    def submit(self, script: str) -> str:
        """The new job's id."""
        return self._told("sbatch", "--parsable", text=script).strip().splitlines()[-1].partition(";")[0]

    def test(self, script: str) -> str:
        """What Slurm would do with it, in a line."""
        answer = self._execute(["sbatch", "--test-only"], script)
        if answer.status:
            raise ClusterError(f"Slurm refuses the job: {_error_line(answer)}")
        return _last_line(answer.err or answer.out).removeprefix("sbatch: ")

    def state(self, job: str) -> JobState | None:
        """From the accounting if there is one, else from the queue; None when neither knows the job."""
        return self._from_sacct(job) or self._from_squeue(job)

    def job(self, job: str) -> dict[str, str]:
        return fields_of(self._told("scontrol", "--oneliner", "show", "job", job))

    def requeue(self, job: str) -> None:
        self._told("scontrol", "requeue", job)

    def exclude(self, job: str, hosts: Sequence[str]) -> None:
        """Only while it waits in the queue."""
        self._told("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(hosts)}")

    def cancel(self, job: str) -> None:
        self._told("scancel", job)

    def interrupt(self, job: str) -> None:
        """SIGINT for the supervisor: the run is to save a checkpoint and leave for good."""
        self._told("scancel", "--batch", "--signal=INT", job)

    def config(self) -> dict[str, str]:
        lines = self._told("scontrol", "show", "config").splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {name.strip(): value.strip() for name, _, value in pairs}

    def partition(self, name: str | None) -> dict[str, str]:
        """Of the default partition when `name` is None."""
        lines = self._told("scontrol", "--oneliner", "show", "partition", *filter(None, [name])).splitlines()
        found = [fields_of(line) for line in lines]
        return next((fields for fields in found if name or fields.get("Default") == "YES"), {})

    def hosts(self, partition: str | None) -> dict[str, str]:
        """The state of each host of the partition, as sinfo has it."""
        chosen = [f"--partition={partition}"] if partition else []
        lines = self._told("sinfo", "--noheader", "--Node", "--format=%N %T", *chosen).splitlines()
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    def node_address(self, host: str) -> str:
        """Name or IP by which Slurm reaches the host."""
        return fields_of(self._told("scontrol", "--oneliner", "show", "node", host)).get("NodeAddr", host)

    def _from_sacct(self, job: str) -> JobState | None:
        if shutil.which("sacct") is None:
            return None
        answer = self._execute(["sacct", "-n", "-P", "-X", "-j", job, "-o", "State,Reason"])
        lines = [line for line in answer.out.splitlines() if line.strip()]
        if answer.status or not lines:  # no accounting on this cluster, or not written yet
            return None
        name, _, reason = lines[-1].partition("|")
        return JobState(name.split()[0], reason, "sacct")  # it may say `CANCELLED by 1000`

    def _from_squeue(self, job: str) -> JobState | None:
        answer = self._execute(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r"])
        lines = answer.out.split("\n")
        if answer.status or not lines[0].strip():
            return None
        name, _, reason = lines[0].partition("|")
        return JobState(name.strip(), reason.strip(), "squeue")

    def _told(self, *command: str, text: str = "") -> str:
        answer = self._execute(list(command), text)
        if answer.status:
            raise ClusterError(f"{command[0]} failed: {_error_line(answer)}")
        return answer.out


def fields_of(line: str) -> dict[str, str]:
    """`scontrol --oneliner`: Name=value, values may have blanks."""
    found = re.split(r"(?:^|\s)([A-Za-z][A-Za-z0-9/:_]*)=", line.strip())
    return dict(zip(found[1::2], (value.strip() for value in found[2::2]), strict=True))


def time_left_s(job: dict[str, str], now: datetime) -> float | None:
    """Until Slurm ends the job, by what `Scheduler.job` says; None without a limit."""
    try:
        return (datetime.fromisoformat(job.get("EndTime", "")) - now).total_seconds()
    except ValueError:  # Unknown, or NONE
        return None


def _error_line(answer: Answer) -> str:
    lines = [line for line in answer.err.splitlines() if "error" in line] or answer.err.splitlines() or ["no message"]
    return "; ".join(line.strip() for line in lines[:3])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
