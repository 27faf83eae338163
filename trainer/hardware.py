"""What this process uses of its host and device, and what the device could do at best."""

import time
from functools import cache

import psutil
import torch

# Dense tensor-core peak in half precision, FLOP/s, from the vendors' data sheets; fp32 (TF32 off) is far lower.
_HALF_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
}


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one worker's device: the data sheet's for known GPUs in half precision, else measured once."""
    if device.type != "cpu" and precision != "fp32":
        name = torch.get_device_module(device).get_device_name()
        for model, peak in _HALF_PEAK.items():
            if model in name:
                return peak
    return _measured_matmul_flops(device)


def _measured_matmul_flops(device: torch.device, size: int = 768, rounds: int = 4) -> float:
    """The best of a few fp32 matrix products."""
    a = torch.ones(size, size, device=device)
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
