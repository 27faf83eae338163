"""`stoker submit`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.slurm.scheduler import SlurmCommands
from configs.errors import RecipeError
from configs.slurm_profiles import profiles_path
from trainer.terminal import say

__all__ = ["submit"]


if TYPE_CHECKING:
    from trainer.launch.slurm_submit import Submission


Flag = Annotated[str | None, typer.Option()]


def submit(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[section.key=value]... [-- sbatch flags]", show_default=False)
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1)] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0)] = None,
    time: Annotated[str | None, typer.Option(help="as 12:00:00 or 2-00")] = None,
    partition: Flag = None,
    account: Flag = None,
    qos: Flag = None,
    array: Annotated[str | None, typer.Option(help="as 0-7%2; {task} in an override is the task's number")] = None,
    each: Annotated[
        list[str] | None, typer.Option(metavar="'KEY=VALUE ...'", help="one task of an array with these overrides")
    ] = None,
    dependency: Annotated[str | None, typer.Option(help="as singleton or afterok:123")] = None,
    constraint: Flag = None,
    container: Annotated[str | None, typer.Option(help="image of pyxis or apptainer that the workers run in")] = None,
    profile: Annotated[str | None, typer.Option(help="of the user's profiles file")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the job script; nothing is written")] = False,
) -> None:
    """Check everything, then queue the run as a Slurm job, which requeues and resumes itself until it is done."""
    from trainer.launch.slurm_submit import plan_submission

    overrides, sbatch = split_arguments(arguments or [])
    given = {
        **{"nodes": nodes, "gpus_per_node": gpus_per_node, "time": time, "partition": partition, "account": account},
        **{"qos": qos, "array": array, "dependency": dependency, "constraint": constraint},
        **{"container": container, "profile": profile, "sbatch": sbatch or None},
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    submission = plan_submission(
        recipe_path, overrides, [text.split() for text in each or []], options, profiles_path(os.environ)
    )
    if dry_run:
        typer.echo(submission.script, nl=False)
    else:
        _check_and_queue(submission)


def _check_and_queue(submission: "Submission") -> None:
    from cluster.run.run_folder import RunFolder
    from trainer.launch.slurm_submit import check_submission, queue

    scheduler = SlurmCommands()
    say("checking the recipe, the data and the cluster")
    check_submission(submission, scheduler, say)
    job = queue(submission, scheduler)
    folder = RunFolder.of(next(iter(submission.runs.values()))).root
    say(f"submitted job {job}; next: stoker status {folder}   stoker logs --follow {folder}")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Overrides, and the flags for sbatch, which come after `--`."""
    first = next((number for number, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    overrides, flags = arguments[:first], arguments[first:]
    for flag in flags:
        if not flag.startswith("-"):
            raise RecipeError(f"{flag!r} after -- is no flag of sbatch: write --name=value, not --name value")
    return overrides, flags
