"""What this process uses of its host and device, and what the device could do at best."""

import platform
import re
import time
from functools import cache

import psutil
import torch

__all__ = ["memory_bytes", "peak_flops"]


# Dense tensor-core peak in half precision with sums in fp32, FLOP/s, from the vendors' data sheets; fp32 (TF32 off) is
# far lower. By the words that a device's name must have; the first that fit.
_HALF_PEAK = (
    ({"GB200"}, 2500e12),
    ({"B200"}, 2250e12),
    ({"GH200"}, 989e12),
    ({"H200", "NVL"}, 835e12),
    ({"H200"}, 989e12),
    ({"H100", "PCIE"}, 756e12),
    ({"H100", "NVL"}, 835e12),
    ({"H100"}, 989e12),
    ({"H800", "PCIE"}, 756e12),
    ({"H800"}, 989e12),
    ({"H20"}, 148e12),
    ({"A100"}, 312e12),
    ({"A800"}, 312e12),
    ({"L40S"}, 362e12),
    ({"L40"}, 181e12),
    ({"L4"}, 121e12),
    ({"RTX", "6000", "ADA"}, 364e12),
    ({"RTX", "4090"}, 165e12),
    ({"A10"}, 125e12),
    ({"V100", "PCIE"}, 112e12),
    ({"V100"}, 125e12),
    ({"T4"}, 65e12),
    ({"MI300X"}, 1307e12),
)
_LESSER = {"MIG", "LAPTOP", "D"}  # a part of such a device, or a slower one of that name
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of one worker's device: the data sheet's for known GPUs in half precision, else measured once."""
    if device.type == "cpu":  # emulated half precision is slower than fp32
        native = precision == "bf16" and computes_bf16(device)
        return _measured_matmul_flops(device, torch.bfloat16 if native else torch.float32)
    known = sheet_flops(torch.get_device_module(device).get_device_name()) if precision != "fp32" else None
    return known or _measured_matmul_flops(device, _DTYPES[precision])


def sheet_flops(name: str) -> float | None:
    """In half precision, of a GPU by its name (torch.cuda.get_device_name); None for one that is not known."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    return None if words & _LESSER else next((peak for needed, peak in _HALF_PEAK if needed <= words), None)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16, rather than emulates them; True where that is not known."""
    if device.type == "cpu" and platform.machine() == "x86_64":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _measured_matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few runs of matrix products."""
    size, products = (768, 1) if device.type == "cpu" else (8192, 8)
    try:
        return _matmul_flops(device, dtype, size, products)
    except torch.OutOfMemoryError:  # the run has the rest of the device; smaller products reach a little less
        return _matmul_flops(device, dtype, 2048, products)


def _matmul_flops(device: torch.device, dtype: torch.dtype, size: int, products: int, rounds: int = 4) -> float:
    # Random: on a device that is limited by its power, products of equal numbers are faster than any in training.
    a = torch.empty(size, size, device=device, dtype=dtype)
    a.normal_(generator=torch.Generator(device).manual_seed(0))
    best, out = 0.0, torch.empty_like(a)
    for _ in range(rounds):  # the first also warms up
        started = time.perf_counter()
        for _ in range(products):  # without waiting, as training does not
            torch.mm(a, a, out=out)
        float(out[0, 0])  # waits for the device
        best = max(best, products * 2 * size**3 / (time.perf_counter() - started))
    return best


def memory_bytes(device: torch.device) -> dict[str, int]:
    """Resident host memory, and the peak of device memory where there is a device."""
    used = {"host_bytes": psutil.Process().memory_info().rss}
    if device.type != "cpu":
        used["device_bytes"] = torch.get_device_module(device).max_memory_allocated()
    return used
