"""The health check of one host: `python -m trainer.host_health.measure_host PLAN | --slurm FOLDER`.

The last line that it prints is a HostReport.
"""

import json
import os
import sys
from pathlib import Path

from cluster.hosts.gpus import gpu_problems, gpu_remarks, read_gpus
from cluster.hosts.health_report import CheckPlan, HostReport
from cluster.hosts.host_fitness import host_problems, measure_host_health
from configs.errors import UnfitHostError
from trainer.host_health.all_reduce_speed import measure_link_speeds
from trainer.host_health.disk_and_matmul_speed import devices, matmul_flops, write_bytes_per_s

__all__ = ["check"]


def check(plan: CheckPlan) -> HostReport:
    """Everything that can be measured here; what cannot be is a problem of the report."""
    gpus = read_gpus()  # before this process itself uses memory of them
    found = [problem for gpu in gpus for problem in gpu_problems(gpu)]
    folder = Path(plan.folder)
    health = disk = None
    try:
        health = measure_host_health(folder)
        found += host_problems(health, 0)
        disk = write_bytes_per_s(folder)
    except (OSError, UnfitHostError) as error:
        found.append(f"{folder} cannot be written from here: {error}")
    flops, wrong = _flops()
    links = measure_link_speeds(plan, devices()[:2][-1])  # of the first accelerator, where there is one
    return HostReport(
        plan.host,
        health,
        [gpu.name for gpu in gpus],
        disk,
        flops,
        links.rates,
        links.broken,
        links.all_reduce_bytes_per_s,
        [*found, *wrong],
        [*(remark for gpu in gpus for remark in gpu_remarks(gpu)), *links.remarks],
    )


def _flops() -> tuple[dict[str, float], list[str]]:
    rates: dict[str, float] = {}
    problems: list[str] = []
    for device in devices():
        try:
            rates[str(device)] = matmul_flops(device)
        except (RuntimeError, UnfitHostError) as error:  # torch's own errors are RuntimeErrors
            problems.append(f"no matrix product on {device}: {str(error).splitlines()[0]}")
    return rates, problems


def _plan(arguments: list[str]) -> CheckPlan:
    """PLAN, or `--slurm FOLDER` as a task of a step."""
    if arguments[0] == "--slurm":
        from cluster.slurm.scheduler import SlurmCommands
        from cluster.slurm_job.check_slurm_hosts import plan_of_task

        return plan_of_task(os.environ, Path(arguments[1]), SlurmCommands())
    return CheckPlan.decode(arguments[0])


if __name__ == "__main__":
    print(json.dumps(check(_plan(sys.argv[1:])).as_dict()))  # noqa: T201
