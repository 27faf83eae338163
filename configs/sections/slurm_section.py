"""The `slurm:` section: how a run is submitted, and what it does when Slurm or a host fails it."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.sections.section import NonNegative, Positive, Section

__all__ = ["Slurm", "array_tasks", "memory_bytes", "time_s"]


Text = Annotated[str, Field(min_length=1)]
_TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")
_ARRAY = re.compile(r"\d+(-\d+(:[1-9]\d*)?)?(,\d+(-\d+(:[1-9]\d*)?)?)*(%[1-9]\d*)?")
_MOUNT = re.compile(r"/[^:,]*(:/[^:,]*(:r[ow])?)?")
_MEMORY = re.compile(r"\d+[KMGT]?")


class Slurm(Section):
    """A job of `stoker submit`. Its options and the user's profiles ([slurm.md](slurm.md)) have the same names."""

    profile: Text | None = Field(None, description="of the user's profiles file; default: `default`, if it is there")
    nodes: Positive = 1
    spare_nodes: NonNegative = Field(
        0, description="of `nodes`, those without which all workers still have room: what a host asks for grows"
    )
    cpus_per_node: Positive | None = Field(None, description="default: those of the workers on a host")
    gpus_per_node: NonNegative | None = Field(None, description="default: those of the workers on a host")
    memory: str | Positive | None = Field(None, description="per host, as `64G`; MiB without a unit; default: Slurm's")
    time: str | Positive | None = Field(
        None, description="minutes, `hours:minutes:seconds` or `days-hours`; default: the partition's"
    )
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    dependency: Text | None = Field(None, description="as sbatch has it; `singleton`: one job of the name at a time")
    array: str | None = Field(
        None, description="tasks, as `0-7%2`, each with a run folder of its own; `{task}` in an override is its number"
    )
    container: Text | None = Field(
        None,
        description="image that Ray and the workers run in, with Stoker's packages: as pyxis or apptainer name it, or "
        "a path; the checkout, the working folder and those of the run and the data are mounted at their own paths",
    )
    container_runtime: Literal["pyxis", "apptainer", "singularity"] | None = Field(
        None, description="default: apptainer for .sif and scheme://, else pyxis"
    )
    container_mounts: list[Text] = Field([], description="further ones: `SRC`, `SRC:DST` or `SRC:DST:ro`")
    container_python: Text = Field("python3", description="in the image")
    setup: list[Text] = Field([], description="shell lines before anything of Stoker runs, as `module load cuda`")
    environment: list[Text] = Field(
        [], description="variables of the submitting shell that reach the job, besides those of storage and proxies"
    )
    interface: Text | None = Field(
        None, description="network interface of Ray and the collectives; default: the one that reaches the first host"
    )
    warning_s: Positive = Field(120, description="Slurm's warning before the end: a step and a checkpoint must fit in")
    start_timeout_s: Positive = Field(300, description="for all hosts to join")
    health_check: Literal["full", "quick"] = Field(
        "full", description="of each host, before training; quick: memory, space and clock, without measured rates"
    )
    on_node_loss: Literal["continue", "wait", "requeue"] = Field(
        "requeue", description="continue: with the hosts that are left; wait: for the lost one to come back"
    )
    wait_s: Positive = Field(300, description="with `on_node_loss: wait`; then the job is requeued")
    max_requeues: NonNegative = Field(5, description="in a row without a newer checkpoint")
    sbatch: list[Text] = Field([], description="further flags of sbatch, one each")

    @model_validator(mode="after")
    def _printable(self) -> Self:
        for name, value in self.model_dump(exclude_none=True).items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not text.isprintable():
                    raise ValueError(f"slurm.{name} is {text!r}: a control character cannot stand in a job script")
        return self

    @model_validator(mode="after")
    def _forms(self) -> Self:
        forms = (("time", _TIME, "1-12, 12:00:00 or 90"), ("array", _ARRAY, "0-7%2"), ("memory", _MEMORY, "64G"))
        for name, form, example in forms:
            value = getattr(self, name)
            if value is not None and not form.fullmatch(str(value)):
                raise ValueError(f"slurm.{name} is {value!r}: expected a value as {example}")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"slurm.environment has {name!r}: expected names of variables, without values")
        return self

    @model_validator(mode="after")
    def _spares(self) -> Self:
        if self.spare_nodes >= self.nodes:
            raise ValueError(f"slurm.spare_nodes is {self.spare_nodes} of slurm.nodes {self.nodes}: one must be left")
        return self

    @model_validator(mode="after")
    def _mounts(self) -> Self:
        for mount in self.container_mounts:
            if not _MOUNT.fullmatch(mount):
                raise ValueError(f"slurm.container_mounts has {mount!r}: expected absolute paths, as SRC:DST:ro")
        return self

    @model_validator(mode="after")
    def _flags(self) -> Self:
        for flag in self.sbatch:
            if not re.match(r"--?[A-Za-z]", flag):
                raise ValueError(f"slurm.sbatch has {flag!r}, which is no flag: write --name or --name=value")
            name = flag.partition("=")[0] if flag.startswith("--") else flag[:2]
            if name in OURS:
                raise ValueError(f"slurm.sbatch has {name}, which Stoker sets itself: {OURS[name]}")
        return self


OURS = {
    **{f"--{name}": f"use slurm.{name}" for name in ("nodes", "time", "partition", "account", "qos", "array")},
    **{f"--{name}": f"use slurm.{name}" for name in ("constraint", "dependency")},
    **{"-N": "use slurm.nodes", "-t": "use slurm.time", "-p": "use slurm.partition", "-a": "use slurm.array"},
    **{"-A": "use slurm.account", "-q": "use slurm.qos", "-C": "use slurm.constraint", "-d": "use slurm.dependency"},
    **{"--mem": "use slurm.memory", "--gpus-per-node": "use slurm.gpus_per_node"},
    **{"--cpus-per-task": "use slurm.cpus_per_node", "-c": "use slurm.cpus_per_node"},
    **dict.fromkeys(("--ntasks", "-n", "--ntasks-per-node"), "it starts one agent per host"),
    **{"--signal": "use slurm.warning_s", "--export": "use slurm.environment"},
    **dict.fromkeys(("--output", "-o", "--error", "-e", "--open-mode"), "the output is RUN_DIR/slurm/job-ID.out"),
    **{"--container-image": "use slurm.container", "--container-mounts": "use slurm.container_mounts"},
    **{"--container-workdir": "submit from that folder"},
    **{"--job-name": "use run.name", "-J": "use run.name", "--chdir": "submit from that folder", "-D": "submit there"},
    **{
        "--requeue": "it is, unless slurm.max_requeues is 0",
        "--no-requeue": "use slurm.max_requeues=0",
        "--wrap": "it has a script",
    },
    **dict.fromkeys(("--wait", "-W"), "`stoker logs --follow` waits for the job"),
    **{"--test-only": "it asks that of Slurm each time; use --dry-run for the script"},
    **dict.fromkeys(("--clusters", "--cluster", "-M"), "submit on a host of that cluster"),
    **dict.fromkeys(("--parsable", "--quiet", "-Q"), "it reads what sbatch says"),
    **dict.fromkeys(("--help", "-h", "--usage", "--version", "-V"), "nothing would be submitted"),
}


def memory_bytes(value: str | int) -> int:
    """Bytes of a `slurm.memory` value, or of what Slurm says of memory."""
    text = str(value)
    unit = text[-1] if text[-1].isalpha() else "M"
    return int(text.rstrip("KMGT")) << {"K": 10, "M": 20, "G": 30, "T": 40}[unit]


def time_s(value: str | int) -> int:
    """Seconds of a `slurm.time` value."""
    days, dash, rest = str(value).rpartition("-")
    fields = [int(field) for field in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*fields, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(fields) == 3:
        return fields[0] * 3600 + fields[1] * 60 + fields[2]
    minutes, seconds = (*fields, 0)[:2]
    return minutes * 60 + seconds


def array_tasks(text: str) -> list[int]:
    """The task numbers of a `slurm.array` value, in order."""
    tasks: set[int] = set()
    for part in text.partition("%")[0].split(","):
        span, _, stride = part.partition(":")
        first, _, last = span.partition("-")
        tasks.update(range(int(first), int(last or first) + 1, int(stride or 1)))
    return sorted(tasks)
