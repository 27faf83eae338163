"""What the driver says of this host's GPUs, through NVML (nvidia-ml-py): https://docs.nvidia.com/deploy/nvml-api/."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

__all__ = ["gpu_problems", "gpu_remarks", "read_gpus"]


MIB = 1 << 20
_SLOWED_DOWN = pynvml.nvmlClocksThrottleReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
_FOREIGN_BYTES = 1 << 30  # a driver keeps some hundred MiB for itself


@dataclass(frozen=True)
class GpuReading:
    """One GPU as the driver reports it. Counts are None where the GPU does not keep them."""

    name: str  # with its number or uuid
    lost: str | None = None  # what the driver says instead of the rest
    uncorrected_errors: int | None = None  # of ECC, since the driver was loaded
    remapping_failed: bool = False
    remapping_pending: bool = False
    used_bytes: int = 0
    too_hot: bool = False


def gpu_problems(gpu: GpuReading) -> Iterator[str]:
    """What makes the GPU unfit for a run, in sentences with the remedy; pure."""
    if gpu.lost is not None:
        yield f"{gpu.name} does not answer ({gpu.lost}): the host has to be restarted, or the gpu replaced"
    if gpu.uncorrected_errors:
        yield f"{gpu.name} has {gpu.uncorrected_errors} uncorrected ECC errors: reset it (nvidia-smi --gpu-reset)"
    if gpu.remapping_failed:
        yield f"{gpu.name} could not remap a broken row of its memory: it has to be replaced"
    elif gpu.remapping_pending:
        yield f"{gpu.name} has broken rows of memory that are remapped only at a reset (nvidia-smi --gpu-reset)"
    if gpu.used_bytes > _FOREIGN_BYTES:
        yield f"{gpu.name} has {gpu.used_bytes // MIB} MiB in use by another process: see nvidia-smi, and end it"


def gpu_remarks(gpu: GpuReading) -> Iterator[str]:
    """What makes the GPU slow; pure."""
    if gpu.too_hot:
        yield f"{gpu.name} is slowed down by its temperature or power supply: see nvidia-smi -q -d PERFORMANCE"


def read_gpus() -> list[GpuReading]:
    """Those that this process may use; empty where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return []
    except pynvml.NVMLError as error:
        return [GpuReading("the NVIDIA driver", lost=str(error))]
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        everything = [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
        names = everything if visible is None else visible.split(",")  # an empty value means none
        return [_read(name.strip()) for name in names if name.strip()]
    finally:
        pynvml.nvmlShutdown()


def _read(name: str) -> GpuReading:
    """`name`: as in CUDA_VISIBLE_DEVICES, a number or a uuid."""
    try:
        by_number = name.isdecimal()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else pynvml.nvmlDeviceGetHandleByUUID(name)
        title = f"gpu {name} ({pynvml.nvmlDeviceGetName(handle)})"
        failed, pending = _remapping(handle)
        return GpuReading(
            title,
            uncorrected_errors=_uncorrected_errors(handle),
            remapping_failed=failed,
            remapping_pending=pending,
            used_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
            too_hot=_slowed_down(handle),
        )
    except pynvml.NVMLError as error:
        return GpuReading(f"gpu {name}", lost=str(error))


def _uncorrected_errors(handle: Any) -> int | None:
    with suppress(pynvml.NVMLError_NotSupported):  # a GPU without ECC, or with it switched off
        kind, counter = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter))
    return None


def _remapping(handle: Any) -> tuple[bool, bool]:
    with suppress(pynvml.NVMLError_NotSupported):  # before Ampere
        _corrected, _uncorrected, pending, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
        return bool(failed), bool(pending)
    return False, False


def _slowed_down(handle: Any) -> bool:
    with suppress(pynvml.NVMLError_NotSupported):
        reasons = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        return bool(reasons & _SLOWED_DOWN)
    return False
