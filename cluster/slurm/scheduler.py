"""Slurm's commands behind a Protocol: submit, ask, requeue, cancel."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from configs.errors import ClusterError

__all__ = ["Scheduler", "SlurmCommands", "overruled_variables", "time_left_s"]


COMMAND_TIMEOUT_S = 60.0
SUBMIT_TIMEOUT_S = 300.0  # giving up on sbatch may leave a job that nobody knows of
# Of the shell, what changes Slurm's commands behind our back: sbatch lets SBATCH_PARTITION go before what the script
# says, and inside another job SLURM_* describe that one.
_MEDDLING = ("SBATCH_", "SLURM_", "SQUEUE_", "SINFO_", "SCANCEL_", "SACCT_", "SCONTROL_")
_KEPT = ("SLURM_CONF", "SLURM_JWT")  # where the cluster is, and who we are
# Of src/common/slurm_errno.c: what the hosts that are left cannot give.
_TOO_FEW = re.compile(r"not available|node count|invalid node|requested nodes|more processors", re.IGNORECASE)
_OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class JobState:
    """What Slurm calls the state of a job; `source` says which command, or the ledger.

    A name that we do not know counts as a job that may go on.
    """

    name: str
    reason: str = ""
    source: str = ""

    @property
    def over(self) -> bool:
        """Whether Slurm will not run the job again by itself."""
        return self.name in _OVER


class Scheduler(Protocol):
    """What Stoker needs of Slurm. All raise ClusterError with Slurm's own words."""

    def submit(self, script: str) -> str:
        """Queue the job of `script`; the new job's id."""

    def test(self, script: str) -> str:
        """What Slurm would do with `script`, in a line, without queueing it."""

    def state(self, job: str) -> JobState | None:
        """State of a job; None when Slurm does not know it any more."""

    def job(self, job: str) -> dict[str, str]:
        """All that scontrol says of a job, by its own names, such as JobState and EndTime."""

    def requeue(self, job: str) -> None:
        """Put a running job back into the queue; Slurm ends all of its processes."""

    def exclude(self, job: str, hosts: Sequence[str]) -> None:
        """Keep `hosts` from a job, in place of those excluded before; only while it waits in the queue."""

    def cancel(self, job: str) -> None:
        """End a job for good."""

    def interrupt(self, job: str) -> None:
        """SIGINT for the batch script: the run is to save a checkpoint and leave for good."""

    def config(self) -> dict[str, str]:
        """The cluster's configuration, by Slurm's own names."""

    def partitions(self, names: str | None) -> list[dict[str, str]]:
        """Of each of `names`, which commas part; of the default partition when that is None."""

    def would_take(self, script: Path, excluded: Sequence[str]) -> bool:
        """Whether the hosts that are up, without `excluded`, could ever run the job of `script`."""

    def node_address(self, host: str) -> str:
        """Name or IP by which Slurm reaches the host."""

    def has_pyxis(self) -> bool:
        """Whether srun here makes containers."""


@dataclass(frozen=True)
class CommandResult:
    """What a command of Slurm left: its exit status and its output."""

    status: int
    out: str
    err: str


class NoAnswerError(ClusterError):
    """Slurm did not answer in time. What was asked of it may be done all the same."""


def run_command(command: Sequence[str], text: str = "") -> CommandResult:
    """Run one of Slurm's commands, with `text` as its input, in a fixed locale and format of times.

    Raises ClusterError when there is no such command, NoAnswerError when it does not answer.
    """
    environment = {**_without_meddling(os.environ), "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}
    timeout_s = SUBMIT_TIMEOUT_S if "--parsable" in command else COMMAND_TIMEOUT_S
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"there is no {command[0]} here: submit on a host of the Slurm cluster") from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"{command[0]} did not answer in {timeout_s:.0f} s: is Slurm's controller up?") from error
    return CommandResult(done.returncode, done.stdout, done.stderr)


def _without_meddling(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_MEDDLING)}


def overruled_variables(environment: Iterable[str]) -> list[str]:
    """Variables by which a user gives sbatch defaults, and which do not count for `stoker submit`."""
    return sorted(name for name in environment if name.startswith("SBATCH_") or name == "SLURM_CLUSTERS")


class SlurmCommands:
    """The real one. `execute` is the seam: `run_command`, or what answers in its place."""

    def __init__(self, execute: Callable[..., CommandResult] = run_command) -> None:
        self._execute = execute

    def submit(self, script: str) -> str:
        """The new job's id."""
        try:
            out = self._output_of("sbatch", "--parsable", text=script)
        except NoAnswerError as error:
            raise NoAnswerError(
                f"{error} The job may be queued all the same, and the run does not know of it: see `squeue --me`, and "
                "`scancel` it before you submit again"
            ) from error
        job = _last_line(out).partition(";")[0]
        if not job.isdecimal():
            raise ClusterError(f"sbatch named no job, but said: {out.strip() or 'nothing'}")
        return job

    def test(self, script: str) -> str:
        """What Slurm would do with it, in a line."""
        answer = self._execute(["sbatch", "--test-only"], script)
        if answer.status:
            raise ClusterError(f"Slurm refuses the job: {_error_line(answer)}")
        return _last_line(answer.err or answer.out).removeprefix("sbatch: ")

    def state(self, job: str) -> JobState | None:
        """From the accounting if there is one, else from the queue; None when Slurm does not know the job any more."""
        return self._from_sacct(job) or self._from_squeue(job)

    def job(self, job: str) -> dict[str, str]:
        """All that `scontrol show job` says. Raises ClusterError for a job that Slurm has forgotten."""
        return fields_of(self._output_of("scontrol", "--oneliner", "show", "job", job))

    def requeue(self, job: str) -> None:
        """Raises ClusterError where Slurm refuses; else Slurm ends the caller too, if it is of the job."""
        self._output_of("scontrol", "requeue", job)

    def exclude(self, job: str, hosts: Sequence[str]) -> None:
        """Only while it waits in the queue."""
        self._output_of("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(hosts)}")

    def cancel(self, job: str) -> None:
        """SIGTERM, and SIGKILL after KillWait, to every process of the job."""
        self._output_of("scancel", job)

    def interrupt(self, job: str) -> None:
        """SIGINT for the supervisor: the run is to save a checkpoint and leave for good."""
        self._output_of("scancel", "--batch", "--signal=INT", job)

    def config(self) -> dict[str, str]:
        """All that `scontrol show config` says."""
        lines = self._output_of("scontrol", "show", "config").splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {name.strip(): value.strip() for name, _, value in pairs}

    def partitions(self, names: str | None) -> list[dict[str, str]]:
        """Of each of `names`, which commas part; of the default partition when that is None."""
        if names is None:
            found = [
                fields_of(line) for line in self._output_of("scontrol", "--oneliner", "show", "partition").splitlines()
            ]
            return [fields for fields in found if fields.get("Default") == "YES"]
        show = ("scontrol", "--oneliner", "show", "partition")
        return [fields_of(self._output_of(*show, name)) for name in names.split(",")]

    def would_take(self, script: Path, excluded: Sequence[str]) -> bool:
        """Whether the hosts that are up, without `excluded`, could ever run the job of `script`."""
        answer = self._execute(["sbatch", "--test-only", f"--exclude={','.join(excluded)}", str(script)])
        if answer.status and not _TOO_FEW.search(answer.err + answer.out):
            raise ClusterError(f"sbatch --test-only failed: {_error_line(answer)}")
        return answer.status == 0

    def node_address(self, host: str) -> str:
        """Name or IP by which Slurm reaches the host."""
        return fields_of(self._output_of("scontrol", "--oneliner", "show", "node", host)).get("NodeAddr", host)

    def has_pyxis(self) -> bool:
        """Whether srun has the options of that plugin."""
        return "--container-image" in self._output_of("srun", "--help")

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
        if answer.status and "Invalid job id" not in answer.err:
            raise ClusterError(f"squeue failed: {_error_line(answer)}")
        lines = answer.out.split("\n")
        if answer.status or not lines[0].strip():
            return None
        name, _, reason = lines[0].partition("|")
        return JobState(name.strip(), reason.strip(), "squeue")

    def _output_of(self, *command: str, text: str = "") -> str:
        answer = self._execute(list(command), text)
        if answer.status:
            raise ClusterError(f"{command[0]} failed: {_error_line(answer)}")
        return answer.out


def fields_of(line: str) -> dict[str, str]:
    """A line of `scontrol --oneliner` by name: Name=value, values may have blanks."""
    found = re.split(r"(?:^|\s)([A-Za-z][A-Za-z0-9/:_]*)=", line.strip())
    return dict(zip(found[1::2], (value.strip() for value in found[2::2]), strict=True))


def time_left_s(job: dict[str, str], now: datetime) -> float | None:
    """Until Slurm ends the job, by what `Scheduler.job` says; None without a limit."""
    try:
        return (datetime.fromisoformat(job.get("EndTime", "")) - now).total_seconds()
    except ValueError:  # Unknown, or NONE
        return None


def _error_line(answer: CommandResult) -> str:
    said = (answer.err.strip() or answer.out.strip() or "no message").splitlines()  # scontrol may say it on stdout
    lines = [line for line in said if "error" in line] or said
    return "; ".join(line.strip() for line in lines[:3])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
