"""`stoker submit`: check everything, write what the job needs, queue it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.run.events import Event
from cluster.run.job_events import Queued, Submitted
from cluster.run.ledger import Ledger, read_json_lines
from cluster.run.run_events import CheckpointPublished
from cluster.run.run_folder import RunFolder
from cluster.slurm.jobs_of_run import live_jobs
from cluster.slurm.sbatch_script import TASK, JobScript, render, slurm_folder, submission_path
from cluster.slurm.scheduler import Scheduler, overruled_variables
from cluster.slurm.slurm_container import check_container, container_of
from cluster.slurm.submit_checks import (
    HostShape,
    check_memory,
    check_warning,
    cluster_warnings,
    host_shape,
    local_paths,
)
from configs.checkout import CHECKOUT
from configs.errors import RecipeError, RunFolderError
from configs.load import dump_recipe, load_recipe
from configs.local_folders import local_folders, outermost
from configs.reading.yaml_source import parse_value
from configs.recipe import Recipe
from configs.sections.slurm_section import Slurm, array_tasks
from configs.slurm_profiles import with_profile
from data.atomic import write_durably

__all__ = ["Submission", "check_submission", "plan_submission", "queue"]


Say = Callable[[str], None]
_MARK = "stoker-task-number"


@dataclass(frozen=True)
class Submission:
    """One job, or one array: the script and, by task, the recipe of each run (of a plain job the task is None)."""

    number: int  # of the run, from 1; of an array, the same for all tasks
    script: str
    slurm: Slurm
    shape: HostShape
    runs: Mapping[int | None, Recipe]


def plan_submission(
    recipe_path: Path,
    overrides: Sequence[str],
    each: Sequence[Sequence[str]],
    options: Mapping[str, Any],
    profiles: Path,
) -> Submission:
    """All that is to be submitted, from the recipe, the options and the user's profiles. Reads files, writes nothing.

    Raises RecipeError, ResourceError or RunFolderError.
    """
    if each and "array" not in options:
        options = {**options, "array": f"0-{len(each) - 1}" if len(each) > 1 else "0"}
    if any(text.startswith("run.name=") for own in each for text in own):
        raise RecipeError(f"--each has run.name: put {TASK} in run.name beside it, as run.name=NAME-{TASK}")
    # What the tasks are must be known before their recipes can be read: task 0 need not be one of them.
    plain = _plain(recipe_path, overrides, options, profiles)
    array = _slurm(plain).array
    tasks: list[int | None] = [None] if array is None else [*array_tasks(array)]
    name = _name(overrides) or (plain.run.name if array is None else f"{plain.run.name}-{TASK}")
    runs = {task: _run(recipe_path, overrides, each, name, task, options, profiles) for task in tasks}
    slurm, shape = _slurm(next(iter(runs.values()))), _shape(runs)
    folders = {RunFolder.of(recipe).root for recipe in runs.values()}
    if len(folders) < len(runs):
        raise RecipeError(f"the tasks of slurm.array {slurm.array} would share a run folder: put {TASK} in run.name")
    if len({folder.parent for folder in folders}) > 1:
        raise RecipeError(f"run.dir is not the same for all tasks of slurm.array {slurm.array}: put {TASK} in run.name")
    number = 1 + max(len(list(slurm_folder(folder).glob("submission-*.yaml"))) for folder in folders)
    script = JobScript(
        name=name.replace(f"-{TASK}", "").replace(TASK, ""),
        slurm=slurm,
        cpus_per_node=shape.cpus,
        gpus_per_node=shape.gpus,
        run_folder=next(iter(folders)).parent / name,
        submission=number,
        working_folder=Path.cwd(),
        checkout=CHECKOUT,
        python=Path(sys.executable),
    )
    return Submission(number, render(script), slurm, shape, runs)


def _plain(recipe_path: Path, overrides: Sequence[str], options: Mapping[str, Any], profiles: Path) -> Recipe:
    """The recipe with some number in the place of a task's: 1, or 0 where it does not take that."""
    try:
        return with_profile(load_recipe(recipe_path, _of_task(overrides, 1)), options, profiles)
    except RecipeError:
        return with_profile(load_recipe(recipe_path, _of_task(overrides, 0)), options, profiles)


def _name(overrides: Sequence[str]) -> str | None:
    """`run.name` as the last override has it, with TASK in it; braces mean something else to YAML."""
    found = [text.partition("=")[2] for text in overrides if text.startswith("run.name=")]
    return str(parse_value(found[-1].replace(TASK, _MARK), "run.name")).replace(_MARK, TASK) if found else None


def _shape(runs: Mapping[int | None, Recipe]) -> HostShape:
    """Of a job in which each of `runs` has room: the tasks of an array all get the same."""
    first = next(iter(runs.values()))
    for task, recipe in runs.items():
        if recipe.slurm != first.slurm:
            raise RecipeError(f"slurm: of task {task} is another one: one job script serves all tasks of an array")
    shapes = [host_shape(recipe.workers, _slurm(recipe)) for recipe in runs.values()]
    return HostShape(*(max(getattr(shape, part) for shape in shapes) for part in ("cpus", "gpus", "workers")))


def _slurm(recipe: Recipe) -> Slurm:
    assert recipe.slurm is not None, "with_profile fills it"
    return recipe.slurm


def _run(
    path: Path,
    overrides: Sequence[str],
    each: Sequence[Sequence[str]],
    name: str,
    task: int | None,
    options: Mapping[str, Any],
    profiles: Path,
) -> Recipe:
    if task is None:
        return with_profile(load_recipe(path, overrides), options, profiles)
    if each and task >= len(each):
        raise RecipeError(f"slurm.array has task {task}, but --each is given {len(each)} times: tasks start at 0")
    own = each[task] if each else []
    texts = _of_task([*overrides, *own, f"run.name={json.dumps(name)}"], task)
    return with_profile(load_recipe(path, texts), options, profiles)


def _of_task(overrides: Sequence[str], task: int) -> list[str]:
    return [text.replace(TASK, str(task)) for text in overrides]


def check_submission(submission: Submission, scheduler: Scheduler, say: Say) -> None:
    """Everything that can be known before the job is queued. Raises the UserError of the first thing that is wrong."""
    from trainer.launch.memory_estimate import estimate  # imports torch
    from trainer.launch.preflight import check_places, preflight

    slurm = submission.slurm
    config, partitions = scheduler.config(), scheduler.partitions(slurm.partition)
    for recipe in submission.runs.values():
        folder = RunFolder.of(recipe)
        check_not_queued(folder, slurm, scheduler)
        preflight(recipe, say, elsewhere=True)
        check_places(recipe)
        step_s, checkpoint_s = measured(read_json_lines(folder.metrics), Ledger(folder.ledger).events())
        check_warning(slurm, step_s, checkpoint_s)
        memory = estimate(recipe).memory[recipe.zero.stage]
        host_bytes = memory.offloaded_bytes + (0 if recipe.workers.gpus else memory.device_bytes)
        for partition in partitions:
            check_memory(slurm, submission.shape, host_bytes, config, partition)
    settings = [warning for partition in partitions or [{}] for warning in cluster_warnings(slurm, config, partition)]
    for warning in [*_overruled(), *dict.fromkeys(settings), *_check_container(submission, scheduler)]:
        say(f"warning: {warning}")
    if paths := ", ".join(_unshared(submission)):
        say(f"warning: every host of the job must see {paths}; it looks like a disk of this host alone")
    say(f"slurm: {scheduler.test(submission.script)}")


def _overruled() -> list[str]:
    names = overruled_variables(os.environ)
    return [f"{', '.join(names)} of this shell do not count: use Stoker's options or a profile"] if names else []


def _check_container(submission: Submission, scheduler: Scheduler) -> list[str]:
    """Warnings."""
    container = container_of(next(iter(submission.runs.values())), Path.cwd(), CHECKOUT)
    if container is None:
        return []
    pyxis = container.runtime == "pyxis" and scheduler.has_pyxis()
    return check_container(container, has_pyxis=pyxis, has_command=shutil.which(container.runtime) is not None)


def _unshared(submission: Submission) -> list[str]:
    recipe = next(iter(submission.runs.values()))
    container = container_of(recipe, Path.cwd(), CHECKOUT)
    image = [container.image_path] if container and container.image_path else []
    folders = outermost([*local_folders(recipe, Path.cwd()), CHECKOUT, Path(sys.prefix).resolve(), *image])
    return local_paths(folders, Path("/proc/self/mounts").read_text())


def check_not_queued(folder: RunFolder, slurm: Slurm, scheduler: Scheduler) -> None:
    """Raises RunFolderError when a job of the run waits or runs, unless this one is to come after it."""
    if slurm.dependency is not None:
        return
    live = live_jobs(Ledger(folder.ledger).events(), scheduler)
    if live:
        job = live[-1]
        raise RunFolderError(
            f"run {folder.root} has job {job.job_id} already ({job.state.name}): `stoker cancel` it, queue this one "
            "behind it with --dependency singleton, or give this run another run.name"
        )


def measured(metrics: Sequence[Mapping[str, Any]], events: Sequence[Event]) -> tuple[float | None, float | None]:
    """Seconds of the longest of the last steps and checkpoints of the run so far."""
    steps = [line["step_s"] for line in metrics[-20:] if "step_s" in line]
    checkpoints = [event.seconds for event in events if isinstance(event, CheckpointPublished)][-5:]
    return max(steps, default=None), max(checkpoints, default=None)


def queue(submission: Submission, scheduler: Scheduler) -> str:
    """Write the job's files into the run folders, submit, note it in the ledgers; the job's id."""
    for recipe in submission.runs.values():
        _write(recipe, submission)
    job = scheduler.submit(submission.script)
    for task, recipe in submission.runs.items():
        ledger = Ledger(RunFolder.of(recipe).ledger)
        own = job if task is None else f"{job}_{task}"
        slurm = submission.slurm
        ledger.append(Submitted(job=own, nodes=slurm.nodes, partition=slurm.partition))
        ledger.append(Queued(job=own))
    return job


def _write(recipe: Recipe, submission: Submission) -> None:
    folder = RunFolder.of(recipe)
    try:
        folder.make()
        slurm_folder(folder.root).mkdir(exist_ok=True)
        text = dump_recipe(recipe).encode()
        write_durably(submission_path(folder.root, submission.number, "yaml"), text)
        write_durably(submission_path(folder.root, submission.number, "sbatch"), submission.script.encode())
        if not folder.recipe.exists():
            write_durably(folder.recipe, text)  # `stoker status` reads it
    except OSError as error:
        raise RunFolderError(f"run folder {folder.root} cannot be written: {error.strerror}") from error
