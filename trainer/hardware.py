"""What this process uses of its host and device, and what the device could do at best."""

import platform
import re
import time
from functools import cache

import psutil
import torch

# Dense tensor-core peak in half precision, FLOP/s, from the vendors' data sheets; fp32 (TF32 off) is far lower.
# By the words that a device's name must have; the first that fit.
_HALF_PEAK = (
    ({"GH200"}, 989e12),
    ({"H200"}, 989e12),
    ({"H100", "PCIE"}, 756e12),
    ({"H100", "NVL"}, 835e12),
    ({"H100"}, 989e12),
    ({"H20"}, 148e12),
    ({"A100"}, 312e12),
    ({"L40S"}, 362e12),
    ({"L40"}, 181e12),
    ({"L4"}, 121e12),
    ({"A10"}, 125e12),
    ({"V100"}, 125e12),
    ({"T4"}, 65e12),
)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEASURED_SIZE = {"cpu": 768}  # of a matrix: enough to keep the device busy


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one worker's device: the data sheet's for known GPUs in half precision, else measured once."""
    if device.type == "cpu":  # half precision is slower than fp32 on most
        return _measured_matmul_flops(device, torch.float32)
    known = sheet_flops(torch.get_device_module(device).get_device_name()) if precision != "fp32" else None
    return known or _measured_matmul_flops(device, _DTYPES[precision])


def sheet_flops(name: str) -> float | None:
    """In half precision, of a GPU by its name (torch.cuda.get_device_name); None for one that is not known."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    return next((peak for needed, peak in _HALF_PEAK if needed <= words), None)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16, rather than emulates them; True where that cannot be told."""
    if device.type == "cpu" and platform.machine() == "x86_64":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _measured_matmul_flops(device: torch.device, dtype: torch.dtype, rounds: int = 4) -> float:
    """The best of a few matrix products."""
    try:
        return _matmul_flops(device, dtype, rounds, _MEASURED_SIZE.get(device.type, 4096))
    except torch.OutOfMemoryError:  # the run has the rest of the device; a smaller product tells a little less
        return _matmul_flops(device, dtype, rounds, 512)


def _matmul_flops(device: torch.device, dtype: torch.dtype, rounds: int, size: int) -> float:
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Resident host memory, and the peak of device memory where there is a device."""
    used = {"host_bytes": psutil.Process().memory_info().rss}
    if device.type != "cpu":
        used["device_bytes"] = torch.get_device_module(device).max_memory_allocated()
    return used
