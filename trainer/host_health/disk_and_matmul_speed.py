"""Speed of this host's disk and of its devices' matrix products: measured, in a second or two."""

import os
import tempfile
import time
from pathlib import Path

import torch

from configs.errors import UnfitHostError

MIB = 1 << 20
_WRITTEN_BYTES = 32 * MIB  # all hosts of a job write at the same time
_CPU_MATRIX, _ACCELERATOR_MATRIX = 256, 4096  # a product takes a millisecond: some are not disturbed by anything
_MULTIPLY_S = 0.4


def write_bytes_per_s(folder: Path) -> float:
    """Bytes a second of one file in `folder`, synced. Raises UnfitHostError when it cannot be written."""
    block = os.urandom(MIB)  # some file systems compress, or leave zeros out
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


def devices() -> list[torch.device]:
    """The CPU, then every accelerator that this process may use."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return [torch.device("cpu")]
    return [torch.device("cpu"), *(torch.device(accelerator.type, n) for n in range(torch.accelerator.device_count()))]


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of the fastest of many products in fp32. Raises UnfitHostError when one is wrong.

    Of one core of a CPU: its threads wait for each other when others use some of the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _matmul_flops(device, _CPU_MATRIX if device.type == "cpu" else _ACCELERATOR_MATRIX)
    finally:
        torch.set_num_threads(threads)


def _matmul_flops(device: torch.device, size: int) -> float:
    a = torch.ones(size, size, device=device)
    best_s, deadline = float("inf"), time.perf_counter() + _MULTIPLY_S
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best_s = min(best_s, time.perf_counter() - started)
        if not bool((product == float(size)).all()):
            raise UnfitHostError("it was wrong: the device has to be replaced")
    return float(2 * size**3 / best_s)
