"""`stoker doctor`: is this machine fit to train, and how fast is it."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.host_health import measure, problems
from cluster.preflight import available_cpus, available_gpus, check_writable
from configs.errors import EXIT_FAILED, UnfitHostError
from trainer.terminal import fail, say

GIB = 1 << 30


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="where runs are to lie")] = Path("runs"),
) -> None:
    """Memory, space, clock, and the measured rates of disk, arithmetic and all-reduce of this host; exit 1 if unfit."""
    check_writable(folder)
    health = measure(folder)
    say(f"cpus {available_cpus()}, gpus {available_gpus()}, free memory {health.memory_bytes / GIB:.1f} GiB")
    say(f"/dev/shm {health.shared_memory_bytes / GIB:.1f} GiB, temporary {health.temporary_bytes / GIB:.1f} GiB free")
    say(f"clock {health.clock_ahead_s:+.1f} s from that of {folder}")
    found = problems(health, 0)
    try:
        _measure_speed(folder)
    except UnfitHostError as error:
        found.append(str(error))
    for problem in found:
        fail(f"unfit: {problem}")
    if found:
        raise typer.Exit(EXIT_FAILED)
    say("fit to train")


def _measure_speed(folder: Path) -> None:
    from trainer.host_speed import all_reduce_bytes_per_s, matmul_flops, write_bytes_per_s  # imports torch

    say(f"disk {write_bytes_per_s(folder) / 1e6:,.0f} MB/s written and synced in {folder}")
    for device, flops in matmul_flops().items():
        say(f"matrix product on {device} {flops / 1e9:,.0f} GFLOP/s in fp32")
    say(f"all-reduce {all_reduce_bytes_per_s() / 1e6:,.0f} MB/s between two processes here")
