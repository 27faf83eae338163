"""Real worker processes for tests, without Ray: a gloo group of N fresh processes that run one function.

They are forked from a server that has imported torch and DeepSpeed, which takes six seconds of a processor, and
nothing else: no thread, no random state and no patch of one test reaches another.
"""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

# DeepSpeed imports the last two, and with them torch's compiler, when an engine is made.
PRELOADED = [
    *("pytest", "torch", "deepspeed", "trainer.training.worker"),
    *("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_config"),
]
_CPU = {"DS_ACCELERATOR": "cpu"}


def run_in_processes(function: Callable[..., Any], world: int, store: Path, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in `world` processes that form a process group; the results in order of rank."""
    context = _context()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_child, args=(pipes[rank][1], dict(os.environ), function, rank, world, store, arguments))
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


def _context() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, _CPU):  # DeepSpeed looks when it is imported
        forkserver.ensure_running()
    return context


def _receive(receiver: Connection) -> tuple[bool, Any]:
    try:
        message: tuple[bool, Any] = receiver.recv()
        return message
    except EOFError:
        return False, "a worker process died"


def _child(
    sender: Connection,
    environment: dict[str, str],
    function: Callable[..., Any],
    rank: int,
    world: int,
    store: Path,
    arguments: tuple[Any, ...],
) -> None:
    assert "deepspeed" in sys.modules, "the fork server could not import what it should"
    gc.freeze()  # no collection need look at what was imported, which takes most of a small engine's start
    os.environ.clear()  # the server's is of the time when it started
    os.environ |= {**environment, **_CPU, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        sender.send((True, function(*arguments)))
    except BaseException:
        sender.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
    finally:
        torch.distributed.destroy_process_group()
