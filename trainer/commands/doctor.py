"""`stoker doctor`: is this machine or cluster fit to train, and how fast is it."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from cluster.hosts.health_report import (
    SLOW_FRACTION,
    UNFIT_FRACTION,
    CheckPlan,
    HostReport,
    report_lines,
    slow_hosts,
    unreachable_hosts,
)
from cluster.hosts.resources import available_cpus, available_gpus, check_writable
from configs.errors import EXIT_FAILED, RecipeError
from trainer.terminal import fail, say

__all__ = ["doctor"]


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="where runs are to lie")] = Path("runs"),
    flags: Annotated[list[str] | None, typer.Argument(metavar="[-- srun flags]", show_default=False)] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="check so many hosts of the Slurm cluster")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="check the nodes of this Ray cluster, or auto")
    ] = None,
) -> None:
    """Memory, space, clock, gpus, and the measured rates of disk, arithmetic and all-reduce; exit 1 if unfit."""
    if nodes is not None and address is not None:
        raise RecipeError("--nodes is for a Slurm cluster and --address for a Ray cluster: give one of them")
    if flags and nodes is None:
        raise RecipeError(f"{' '.join(flags)}: flags of srun need --nodes")
    check_writable(folder)
    if address is not None:
        from cluster.ray_cluster.check_ray_nodes import check_nodes

        reports = check_nodes(address, folder, say)
    elif nodes is not None:
        from cluster.slurm_job.check_slurm_hosts import check_hosts

        say(f"checking {nodes} hosts of the Slurm cluster")
        reports = check_hosts(folder, nodes, flags or [], os.environ)
    else:
        reports = [_check_here(folder)]
    if not _show(reports):
        raise typer.Exit(EXIT_FAILED)
    say("fit to train")


def _check_here(folder: Path) -> HostReport:
    from trainer.host_health.all_reduce_speed import all_reduce_between_processes
    from trainer.host_health.measure_host import check  # imports torch

    say(f"cpus {available_cpus()}, gpus {available_gpus()}")
    report = check(CheckPlan(str(folder), (socket.gethostname(),), 0, ""))
    say(f"all-reduce {all_reduce_between_processes() / 1e6:,.0f} MB/s between two processes here")
    return report


def _show(reports: list[HostReport]) -> bool:
    """Everything that was found; whether all are fit."""
    for report in reports:
        for line in report_lines(report):
            say(f"{report.host}: {line}" if len(reports) > 1 else line)
    unfit = {report.host: "; ".join(report.problems) for report in reports if report.problems}
    unfit = {**unreachable_hosts(reports), **slow_hosts(reports, UNFIT_FRACTION), **unfit}
    for host, cause in slow_hosts(reports, SLOW_FRACTION).items():
        if host not in unfit:
            say(f"warning: {host} holds the others up: {cause}")
    for host, cause in unfit.items():
        fail(f"unfit: {host}: {cause}" if len(reports) > 1 else f"unfit: {cause}")
    broken = _show_broken(reports, unfit)
    if not broken and len(reports) > 1 and any(report.all_reduce_bytes_per_s is None for report in reports):
        fail("the hosts have not added up together, so this check is not whole: see above")
        return False
    return not unfit and not broken


def _show_broken(reports: list[HostReport], unfit: dict[str, str]) -> bool:
    """Links between two hosts neither of which could be told to be the bad one."""
    found = False
    for report in reports:
        for other, why in report.broken.items():
            if report.host not in unfit and other not in unfit:
                fail(f"no all-reduce between {report.host} and {other}: {why}")
                found = True
    return found
