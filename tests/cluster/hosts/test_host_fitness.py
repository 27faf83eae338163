"""The health check of a host: pure judgement, and one real measurement."""

from dataclasses import replace
from pathlib import Path

from cluster.hosts.host_fitness import HostHealth, host_problems, measure_host_health

GIB = 1 << 30
FIT = HostHealth(memory_bytes=8 * GIB, shared_memory_bytes=GIB, temporary_bytes=GIB, clock_ahead_s=0.5)


def test_each_shortage_is_named_with_what_is_there_and_what_is_needed() -> None:
    assert host_problems(FIT, 10 * GIB) == []  # the system itself has a part of it
    assert host_problems(replace(FIT, memory_bytes=6 * GIB), 10 * GIB) == [
        "6144 MiB of memory are free, the run may use 10240"
    ]
    assert host_problems(replace(FIT, shared_memory_bytes=GIB // 16), 0) == ["/dev/shm has 64 MiB free, Ray needs 128"]
    (temporary,) = host_problems(replace(FIT, temporary_bytes=0), 0)
    assert "has 0 MiB free, Ray needs 256" in temporary
    (clock,) = host_problems(replace(FIT, clock_ahead_s=-61.0), 0)
    assert clock == "the clock is -61 s from that of the shared file system's server"


def test_a_measurement_leaves_nothing_behind(tmp_path: Path) -> None:
    health = measure_host_health(tmp_path)
    assert health.memory_bytes > 0
    assert abs(health.clock_ahead_s) < 2.0
    assert list(tmp_path.iterdir()) == []
