"""Real worker processes for tests, without Ray: a gloo group of N spawned processes that run one function."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def run_in_processes(function: Callable[..., Any], world: int, store: Path, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `world` processes that form a process group; the results in order of rank."""
    context = get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_child, args=(pipes[rank][1], function, rank, world, store, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    results = [_receive(receiver) for receiver, _ in pipes]
    for process in processes:
        process.join()
    failures = [text for ok, text in results if not ok]
    if failures:
        raise AssertionError("\n".join(failures))
    return [value for _, value in results]


def _receive(receiver: Connection) -> tuple[bool, Any]:
    try:
        message: tuple[bool, Any] = receiver.recv()
        return message
    except EOFError:
        return False, "a worker process died"


def _child(
    sender: Connection, function: Callable[..., Any], rank: int, world: int, store: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
    finally:
        torch.distributed.destroy_process_group()
