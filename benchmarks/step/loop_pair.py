"""Runs the loops of step_contenders.py in one pair of processes and gathers what rank 0 measures."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks.common.setting import WORKERS
from benchmarks.step.step_contenders import LOOPS, MeasuredSteps, worker_process

SILENCE_LIMIT_S = 180.0  # no measured of steps takes that long

Round = dict[str, MeasuredSteps]


def measure_loops(folder: Path, rounds: int, steps: int, say: Callable[[str], None]) -> list[Round]:
    """The MeasuredSteps of each loop, per round. Raises RuntimeError when a process fails, and leaves none behind."""
    context = get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(WORKERS)]
    processes = [
        context.Process(target=worker_process, args=(rank, folder, rounds, steps, pipes[rank][1]), daemon=True)
        for rank in range(WORKERS)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()
    try:
        found = _gather([receiver for receiver, _ in pipes], rounds, say)
        for process in processes:
            process.join(20)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def _gather(receivers: list[Connection], rounds: int, say: Callable[[str], None]) -> list[Round]:
    found: list[Round] = [{} for _ in range(rounds)]
    running: list[object] = [*receivers]
    while running:
        ready = wait(running, SILENCE_LIMIT_S)  # type: ignore[arg-type]
        if not ready:
            raise RuntimeError(f"the workers said nothing for {SILENCE_LIMIT_S:.0f} s")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            message = _receive(receiver)
            if message is None:
                running.remove(receiver)
                continue
            index, measured = message
            found[index][measured.loop] = measured
            if len(found[index]) == len(LOOPS):
                speeds = ", ".join(f"{loop} {found[index][loop].tokens_per_s:,.0f}" for loop in LOOPS)
                say(f"round {index + 1} of {rounds}: tokens/s {speeds}")
    return found


def _receive(receiver: Connection) -> tuple[int, MeasuredSteps] | None:
    try:
        message: tuple[int, MeasuredSteps] | str | None = receiver.recv()
    except EOFError:
        raise RuntimeError("a worker process died") from None
    if isinstance(message, str):
        raise RuntimeError(message)
    return message
