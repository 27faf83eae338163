"""The job script as text, from the template slurm/job.sbatch. Pure: equal jobs give equal bytes."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from cluster.run.run_folder import RunFolder
from configs.checkout import CHECKOUT
from configs.errors import RunFolderError
from configs.sections.slurm_section import Slurm

__all__ = ["TASK", "JobScript", "output_path", "render", "slurm_folder", "submission_path"]


TEMPLATE = CHECKOUT / "slurm" / "job.sbatch"
# Of the submitting shell, where set: what remote shards and checkpoints need. Values stay out of the script.
STORAGE_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


TASK = "{task}"  # in a path of an array: the number of the task


@dataclass(frozen=True)
class JobScript:
    """What a script is made of. Of an array, `run_folder` has TASK in it."""

    name: str
    slurm: Slurm
    cpus_per_node: int
    gpus_per_node: int
    run_folder: Path
    submission: int  # of the run, from 1
    working_folder: Path
    checkout: Path
    python: Path


def slurm_folder(run_folder: Path) -> Path:
    """Where a run keeps what belongs to its jobs."""
    return RunFolder(run_folder).slurm


def submission_path(run_folder: Path, submission: int, kind: str) -> Path:
    """The recipe (yaml) or the script (sbatch) of one `stoker submit`, which a later one must not change."""
    return slurm_folder(run_folder) / f"submission-{submission}.{kind}"


def output_path(run_folder: Path, job_id: str) -> Path:
    """What the job says, in all its starts."""
    return slurm_folder(run_folder) / f"job-{job_id}.out"


def render(job: JobScript) -> str:
    """Raises RunFolderError for paths that cannot stand in a job script."""
    for path in (job.run_folder, job.working_folder, job.checkout, job.python):
        if not str(path).isprintable() or "\\" in str(path):
            raise RunFolderError(f"{str(path)!r} has a control character or a backslash, which Slurm does not take")
    values = {
        "directives": "\n".join(f"#SBATCH {_quoted(line)}" for line in directives(job)),
        "setup": "\n".join(job.slurm.setup),
        "run_folder": _shell_path(job),
        "submission": str(job.submission),
        "working_folder": shlex.quote(str(job.working_folder)),
        "checkout": shlex.quote(str(job.checkout)),
        "python": shlex.quote(str(job.python)),
    }
    text = re.sub(r"@(\w+)@", lambda found: values[found[1]], TEMPLATE.read_text())
    return re.sub(r"\n{2,}", "\n", text)


def directives(job: JobScript) -> list[str]:
    """The flags of sbatch, unquoted."""
    slurm = job.slurm
    flags: dict[str, object] = {
        "job-name": job.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus_per_node,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": slurm.memory,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "dependency": slurm.dependency,
        "array": slurm.array,
        "output": _output_pattern(job),
        "open-mode": "append",
        "signal": f"B:USR2@{slurm.warning_s}",
        "export": ",".join(dict.fromkeys((*STORAGE_VARIABLES, *slurm.environment))),
    }
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    requeue = "--requeue" if slurm.max_requeues else "--no-requeue"  # which holds for Slurm itself too
    return [*given, requeue, "--no-kill", *slurm.sbatch]


def _output_pattern(job: JobScript) -> str:
    """`output_path`, in Slurm's way to write it."""
    folder = str(slurm_folder(job.run_folder)).replace("%", "%%")
    if job.slurm.array is None:
        return f"{folder}/job-%j.out"
    return f"{folder.replace(TASK, '%a')}/job-%A_%a.out"


def _shell_path(job: JobScript) -> str:
    parts = str(job.run_folder).split(TASK) if job.slurm.array is not None else [str(job.run_folder)]
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in parts)


def _quoted(flag: str) -> str:
    """For sbatch, which reads quotes and backslashes in its own way, and takes an open # for a comment."""
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", flag):
        return flag
    return '"' + flag.replace("\\", "\\\\").replace('"', '\\"') + '"'
