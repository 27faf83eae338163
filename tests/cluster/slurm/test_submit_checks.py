"""What `stoker submit` refuses or warns of before a job is queued: pure, on what scontrol says."""

from pathlib import Path

import pytest

from cluster.slurm.submit_checks import (
    HostShape,
    check_memory,
    check_warning,
    cluster_warnings,
    host_shape,
    local_paths,
)
from configs.errors import ResourceError
from configs.recipe import Workers
from configs.sections.slurm_section import Slurm

GIB = 1 << 30


def test_the_cpus_and_gpus_of_a_host_follow_from_its_workers() -> None:
    assert host_shape(Workers(count=5, cpus=2, gpus=1), Slurm(nodes=2)) == HostShape(cpus=6, gpus=3, workers=3)
    spare = host_shape(Workers(count=8, gpus=1), Slurm(nodes=3, spare_nodes=1))
    assert spare == HostShape(cpus=4, gpus=4, workers=4)
    assert host_shape(Workers(count="2..8"), Slurm(nodes=2, cpus_per_node=3)) == HostShape(cpus=3, gpus=0, workers=3)


def test_workers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ResourceError, match=r"workers\.count 8 × .* does not fit in slurm\.nodes 2 × \(3 cpus"):
        host_shape(Workers(count=8), Slurm(nodes=2, cpus_per_node=3))


def test_too_little_memory_is_refused_wherever_its_limit_comes_from() -> None:
    shape = HostShape(cpus=4, gpus=0, workers=2)
    with pytest.raises(ResourceError, match=r"at least 6\.00 GiB, the job has 4\.00 GiB \(slurm\.memory\)"):
        check_memory(Slurm(memory="4G"), shape, 3 * GIB, {}, {})
    with pytest.raises(ResourceError, match="the cluster's DefMemPerCPU"):
        check_memory(Slurm(), shape, 3 * GIB, {"DefMemPerCPU": "1000"}, {})
    check_memory(Slurm(memory="0"), shape, 3 * GIB, {"DefMemPerCPU": "1000"}, {})  # 0: all of the host


def test_a_warning_that_leaves_no_time_for_a_step_and_a_checkpoint_is_refused() -> None:
    check_warning(Slurm(warning_s=60), 10.0, 40.0)
    with pytest.raises(ResourceError, match=r"slurm\.warning_s is 60, .* a checkpoint 55\.0 s: raise it to 132"):
        check_warning(Slurm(warning_s=60), 10.0, 55.0)
    with pytest.raises(ResourceError, match=r"slurm\.time gives 60 s: the job would be warned at once"):
        check_warning(Slurm(warning_s=120, time="1"), None, None)


def test_settings_of_the_cluster_that_cost_steps_are_told() -> None:
    preempts = {"PreemptType": "preempt/partition_prio", "JobRequeue": "1", "KillWait": "30 sec"}
    warned = cluster_warnings(Slurm(), preempts, {"PreemptMode": "REQUEUE", "GraceTime": "60"})
    assert [text.split(" (")[0] for text in warned] == ["jobs here are preempted without a warning"]
    signals = {**preempts, "SlurmctldParameters": "preempt_send_user_signal"}
    (short,) = cluster_warnings(Slurm(), signals, {"PreemptMode": "REQUEUE", "GraceTime": "60"})
    assert "a preempted job has 60 s here" in short
    assert cluster_warnings(Slurm(), signals, {"PreemptMode": "OFF", "GraceTime": "0"}) == []
    assert len(cluster_warnings(Slurm(), {"JobRequeue": "0", "KillWait": "5 sec"}, {})) == 2


def test_paths_on_a_disk_of_this_host_alone_are_found_by_their_mount() -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nfiler:/home /home nfs4 rw 0 0\ntmpfs /home/my\\040scratch tmpfs rw 0 0\n"
    paths = [Path("/home/a/runs"), Path("/home/my scratch/runs"), Path("/opt/stoker")]
    assert local_paths(paths, mounts) == ["/home/my scratch/runs (tmpfs)", "/opt/stoker (ext4)"]
