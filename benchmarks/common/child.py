"""One process per contender: asked over a pipe, it measures itself. Standard library only, for any environment."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
Handler = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """`count` samples (or bytes) in `wall_s` seconds, for `cpu_s` of all threads and ended children of the process."""

    count: int
    cpu_s: float
    wall_s: float


class Child:
    """`python -m benchmarks.MODULE ARGUMENTS`, idle unless asked."""

    def __init__(self, python: str, module: str, *arguments: str) -> None:
        self._name = f"{module} {' '.join(arguments)}"
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        """What the child's handler of this name returns. RuntimeError when it failed; its traceback is on stderr."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # that it ended is reported below
            print(json.dumps([command, options]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._name}: ended with code {self._process.wait()} when asked to {command}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def measure(self, command: str, **options: Any) -> Measured:
        """Of a handler that returns `measured(…)`."""
        return Measured(**self.ask(command, **options))

    def close(self) -> None:
        """Ends when its input does."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer until the input ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command, options = json.loads(line)
        print(json.dumps(handlers[command](**options)), file=answers, flush=True)


def measured(epoch: Callable[[], Iterator[int]], seconds: float) -> dict[str, Any]:
    """Epochs, one after the other, for about `seconds` after the first batch, which opens and warms.

    `epoch` yields how many samples (or bytes) each batch has.
    """
    batches = _endless(epoch)
    with closing(batches):
        next(batches)
        cpu, start, count = cpu_s(), time.perf_counter(), 0
        while (now := time.perf_counter()) < start + seconds:
            count += next(batches)
    return asdict(Measured(count, cpu_s() - cpu, now - start))


def measured_once(work: Callable[[], int]) -> dict[str, Any]:
    """One piece of work, which returns a count."""
    cpu, start = cpu_s(), time.perf_counter()
    return asdict(Measured(work(), cpu_s() - cpu, time.perf_counter() - start))


def _endless(epoch: Callable[[], Iterator[int]]) -> Generator[int, None, None]:
    while True:
        yield from epoch()


def cpu_s() -> float:
    """Processor seconds of this process, all its threads, and the children it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def digest(sizes_and_sums: Iterator[tuple[int, int]]) -> dict[str, int]:
    """Of (bytes, CRC-32) of each sample, in any order: the same when the samples are the same."""
    count = size = total = 0
    for sample_bytes, crc in sizes_and_sums:
        count, size, total = count + 1, size + sample_bytes, total + crc
    return {"samples": count, "bytes": size, "crc32_sum": total}
