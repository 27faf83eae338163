"""The job script as text, from the template slurm/job.sbatch. Pure: equal jobs give equal bytes."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RunFolderError
from configs.slurm import Slurm

TEMPLATE = Path(__file__).parents[1] / "slurm" / "job.sbatch"
# Of the submitting shell, where set: what remote shards and checkpoints need. Values stay out of the script.
STORAGE_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True)
class JobScript:
    """What a script is made of. `run_folders` by array task; of a job without tasks, the key is None."""

    name: str
    slurm: Slurm
    cpus_per_node: int
    gpus_per_node: int
    run_folders: Mapping[int | None, Path]
    working_folder: Path
    checkout: Path
    python: Path


def slurm_folder(run_folder: Path) -> Path:
    """Where a run keeps what belongs to its jobs."""
    return run_folder / "slurm"


def render(job: JobScript) -> str:
    """Raises RunFolderError for paths that cannot stand in a job script."""
    for path in (*job.run_folders.values(), job.working_folder, job.checkout, job.python):
        if not str(path).isprintable() or "\\" in str(path):
            raise RunFolderError(f"{str(path)!r} has a control character or a backslash, which Slurm does not take")
    values = {
        "directives": "\n".join(f"#SBATCH {_quoted(line)}" for line in directives(job)),
        "setup": "\n".join(job.slurm.setup),
        "run_folder": _choice(job.run_folders),
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
        "output": output_pattern(job),
        "open-mode": "append",
        "signal": f"B:USR2@{slurm.warning_s}",
        "export": ",".join(dict.fromkeys((*STORAGE_VARIABLES, *slurm.environment))),
    }
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return [*given, "--requeue", "--no-kill", *slurm.sbatch]


def output_pattern(job: JobScript) -> str:
    """All starts of a job write to one file. With an array, all tasks share a folder, beside those of the runs."""
    folders = list(job.run_folders.values())
    folder = slurm_folder(folders[0]) if list(job.run_folders) == [None] else folders[0].parent
    return f"{folder}/job-".replace("%", "%%") + ("%j.out" if list(job.run_folders) == [None] else "%A_%a.out")


def output_path(run_folder: Path, job_id: str) -> Path:
    """Where the job's output is, by `output_pattern`."""
    folder = run_folder.parent if "_" in job_id else slurm_folder(run_folder)
    return folder / f"job-{job_id}.out"


def _choice(run_folders: Mapping[int | None, Path]) -> str:
    if list(run_folders) == [None]:
        return f"run_folder={shlex.quote(str(run_folders[None]))}"
    cases = [f"  {task}) run_folder={shlex.quote(str(path))} ;;" for task, path in run_folders.items()]
    return "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "  *) exit 2 ;;", "esac"])


def _quoted(flag: str) -> str:
    """For sbatch, which reads quotes and backslashes in its own way, and takes an open # for a comment."""
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", flag):
        return flag
    return '"' + flag.replace("\\", "\\\\").replace('"', '\\"') + '"'
