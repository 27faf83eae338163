"""What NVML says of the GPUs: read through its real binding, from a library that answers as a broken host's does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.hosts.gpus import GpuReading, gpu_problems, read_gpus
from configs.checkout import CHECKOUT

HERE = Path(__file__).parent
PROGRAM = """
from cluster.hosts.gpus import gpu_problems, read_gpus, gpu_remarks
for gpu in read_gpus():
    print(gpu.name, *gpu_problems(gpu), *gpu_remarks(gpu), sep="|")
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("NVML IS NOT TESTED: there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", HERE / "nvml.c"], check=True)
    return folder


def read_with(driver: Path, **variables: str) -> list[list[str]]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": str(CHECKOUT), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_broken_gpus_are_named_with_what_to_do(driver: Path) -> None:
    healthy, ecc, lost, worn = read_with(driver, CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert healthy == ["gpu 0 (Test 80GB)"]
    assert ecc[1:] == ["gpu 1 (Test 80GB) has 12 uncorrected ECC errors: reset it (nvidia-smi --gpu-reset)"]
    assert lost[1:] == ["gpu 2 does not answer (GPU is lost): the host has to be restarted, or the gpu replaced"]
    assert [text.partition(") ")[2].split(":")[0] for text in worn[1:]] == [
        "has broken rows of memory that are remapped only at a reset (nvidia-smi --gpu-reset)",
        "has 3072 MiB in use by another process",
        "is slowed down by its temperature or power supply",
    ]


def test_only_gpus_that_the_job_was_given_are_looked_at(driver: Path) -> None:
    assert [gpu[0] for gpu in read_with(driver, CUDA_VISIBLE_DEVICES="0")] == ["gpu 0 (Test 80GB)"]
    assert [gpu[0] for gpu in read_with(driver, CUDA_VISIBLE_DEVICES="GPU-5a1b")] == ["gpu GPU-5a1b (Test 80GB)"]
    assert read_with(driver, CUDA_VISIBLE_DEVICES="") == []


def test_a_host_without_a_driver_has_no_gpus() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this host has a driver")
    assert read_gpus() == []
    assert list(gpu_problems(GpuReading("gpu 0"))) == []
