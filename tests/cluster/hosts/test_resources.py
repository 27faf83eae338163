import os
import re
from pathlib import Path

import pytest

from cluster.cloud.cluster_shape import node_shape
from cluster.hosts.resources import (
    available_cpus,
    available_gpus,
    cgroup_cpus,
    check_disk,
    check_resources,
    check_writable,
    count_that_fit,
    cpus_of_workers,
    fitting_workers,
    visible_gpus,
)
from cluster.slurm.submit_checks import host_shape
from configs.errors import ResourceError, RunFolderError
from configs.sections.slurm_section import Slurm
from tests.support.worker_settings import workers


def test_a_run_that_fits_exactly_passes_and_one_worker_more_is_refused_with_a_remedy() -> None:
    check_resources(workers(count=2, cpus=2, gpus=1), cpus=4, gpus=2)
    expected = "workers.count 4 × workers.cpus 1 needs 4 cpus, this machine has 2: lower workers.count to 2"
    with pytest.raises(ResourceError, match=re.escape(expected)):
        check_resources(workers(count=4), cpus=2, gpus=0)
    with pytest.raises(ResourceError, match=r"needs 1 gpus, this machine has 0: lower workers.gpus"):
        check_resources(workers(gpus=1), cpus=2, gpus=0)


def test_workers_that_share_cpus_are_counted_exactly() -> None:
    check_resources(workers(count=4, cpus=0.5), cpus=2, gpus=0)
    with pytest.raises(ResourceError, match=r"5 × workers.cpus 0.5 needs 2.5 cpus, this .* lower workers.count to 4"):
        check_resources(workers(count=5, cpus=0.5), cpus=2, gpus=0)
    assert fitting_workers(workers(count="1..20", cpus=0.1), cpus=1, gpus=0) == 10  # 1 // 0.1 is 9
    assert count_that_fit(0.3333, 1.0) == 3
    assert [cpus_of_workers(count, 0.1) for count in (1, 3, 10, 11)] == [1, 1, 1, 2]
    assert host_shape(workers(count=6, cpus=0.5), Slurm(nodes=2)).cpus == 2
    assert node_shape(workers(count=6, cpus=0.5), 3).cpus == 2


def test_cpus_follow_the_affinity_of_the_process() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_tightest_cgroup_quota_counts(tmp_path: Path) -> None:
    job = tmp_path / "slice/job"
    job.mkdir(parents=True)
    assert cgroup_cpus(tmp_path, "0::/slice/job") is None
    (job / "cpu.max").write_text("max 100000\n")
    assert cgroup_cpus(tmp_path, "0::/slice/job") is None
    (job.parent / "cpu.max").write_text("150000 100000\n")
    assert cgroup_cpus(tmp_path, "0::/slice/job") == 1.5
    old = tmp_path / "cpu,cpuacct/docker"
    old.mkdir(parents=True)
    (old / "cpu.cfs_quota_us").write_text("50000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cpus(tmp_path, "4:memory:/docker\n3:cpu,cpuacct:/docker\n") == 0.5


def test_visible_gpus_are_counted_as_cuda_does(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"": 0, "-1": 0, "0": 1, "2,0": 2, "0,-1,1": 1, "GPU-8f1b,GPU-77aa": 2}
    assert {value: visible_gpus(value) for value in counts} == counts
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert available_gpus() == 0


def test_a_disk_too_small_is_refused_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    check_disk(tmp_path / "new/run", 1)
    with pytest.raises(ResourceError, match=r"GiB free, checkpoints need 1073741824.00 GiB: free some space"):
        check_disk(tmp_path / "new/run", 1 << 60)


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs/a")
    assert list((tmp_path / "runs/a").iterdir()) == []


def test_a_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(RunFolderError, match=f"run folder {folder} cannot be written: a file is in its place"):
            check_writable(folder)


def test_a_folder_where_nothing_can_be_made_is_refused_with_the_cause() -> None:
    with pytest.raises(RunFolderError, match=r"cannot be written: .+; set run.dir to a writable folder"):
        check_writable(Path("/proc/runs"))
