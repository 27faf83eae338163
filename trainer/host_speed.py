"""How fast this host writes, multiplies and adds up between two processes: measured, in a few seconds."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from configs.errors import UnfitHostError
from trainer.hardware import peak_flops

MIB = 1 << 20
_WRITTEN_BYTES = 64 * MIB
_SUMMED_BYTES = 16 * MIB
_ROUNDS = 5
_WORLD = 2
_TIMEOUT_S = 120.0


def write_bytes_per_s(folder: Path) -> float:
    """Of one file that is on the disk when its time is up. Raises UnfitHostError."""
    block = os.urandom(MIB)
    started = time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            for _ in range(_WRITTEN_BYTES // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UnfitHostError(f"{folder} cannot be written: {error.strerror}") from error
    return _WRITTEN_BYTES / (time.perf_counter() - started)


def matmul_flops() -> dict[str, float]:
    """FLOP/s of a product in fp32, by device."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return {str(device): peak_flops(device, "fp32") for device in (torch.device("cpu"), *devices)}


def all_reduce_bytes_per_s() -> float:
    """Of two processes on this host, through gloo: what each sends a second. Raises UnfitHostError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trainer.host_speed", str(Path(folder) / "store")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        started = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for rank in range(_WORLD)
        ]
        try:
            answers = [process.communicate(timeout=_TIMEOUT_S) for process in started]
        except subprocess.TimeoutExpired as error:
            raise UnfitHostError(f"an all-reduce between two processes took more than {_TIMEOUT_S:.0f} s") from error
        finally:
            for process in started:
                process.kill()
    if any(process.returncode for process in started):
        last = (answers[0][1] or answers[1][1]).decode(errors="replace").strip().splitlines()[-1:]
        raise UnfitHostError(f"an all-reduce between two processes failed: {''.join(last)}")
    return float(json.loads(answers[0][0]))


def _rank(store: str, rank: int) -> float:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=_WORLD)
    values = torch.ones(_SUMMED_BYTES // 4)
    dist.all_reduce(values)  # the first also connects
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        dist.all_reduce(values)
    seconds = time.perf_counter() - started
    if not bool((values == float(_WORLD ** (_ROUNDS + 1))).all()):
        raise UnfitHostError("an all-reduce between two processes gave a wrong sum")
    dist.destroy_process_group()
    return 2 * (_WORLD - 1) / _WORLD * _SUMMED_BYTES * _ROUNDS / seconds


if __name__ == "__main__":
    print(json.dumps(_rank(sys.argv[1], int(sys.argv[2]))))  # noqa: T201
