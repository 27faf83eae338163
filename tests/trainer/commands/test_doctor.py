"""`stoker doctor`: what it measures here, and what it says of a host that cannot be used."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.hosts.health_report import CheckPlan
from cluster.hosts.network import free_port
from configs.errors import UnfitHostError
from configs.load import dump_recipe
from tests.support.ray_cluster import RayCluster
from tests.support.training.commands import STOKER
from tests.support.training.runs import GPT, recipe_of, write_text_shards
from trainer import cli
from trainer.host_health import all_reduce_speed
from trainer.host_health.disk_and_matmul_speed import write_bytes_per_s


def doctor(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["stoker", "doctor", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


def test_a_fit_host_gets_its_rates_and_keeps_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = doctor(tmp_path, capsys, monkeypatch)
    assert code == 0, text
    for line in ("free memory", "MB/s written and synced", "GFLOP/s in fp32", "all-reduce", "fit to train"):
        assert line in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    code, text = doctor(tmp_path / "file", capsys, monkeypatch)
    assert code == 2
    assert f"{tmp_path / 'file'} cannot be written: a file is in its place" in text
    with pytest.raises(UnfitHostError, match="cannot be written: No such file or directory"):
        write_bytes_per_s(tmp_path / "gone")


@pytest.mark.slow
def test_the_nodes_of_a_ray_cluster_are_checked_together_and_a_wrong_token_is_told_in_a_line(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    with RayCluster(tmp_path) as cluster:
        for _ in range(2):
            cluster.add_node()
        (tmp_path / "wrong").write_text("0" * 64)
        wrong = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
        (tmp_path / "refused.yaml").write_text(dump_recipe(recipe_of(tmp_path, GPT, "refused")))
        train = [str(STOKER), "train", str(tmp_path / "refused.yaml"), "--address", cluster.address]
        refused = subprocess.Popen(train, env=wrong, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        command = [str(STOKER), "doctor", str(tmp_path / "runs"), "--address", cluster.address]
        environment = os.environ | cluster.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        output, _ = refused.communicate(timeout=1200)
    assert refused.returncode == 2, output
    assert f"no Ray cluster could be joined at {cluster.address}" in output
    assert "Traceback" not in output
    assert done.returncode == 0, done.stdout + done.stderr
    assert "joined the Ray cluster" in done.stdout
    for line in ("matrix product on one cpu core", "all-reduce of all hosts", "all-reduce with", "free memory"):
        assert done.stdout.count(line) >= 3, done.stdout
    assert done.stdout.endswith("fit to train\n")


def test_a_host_whose_neighbours_do_not_answer_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce_speed, "RENDEZVOUS_TIMEOUT_S", 1.0)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    alone = CheckPlan(str(tmp_path), ("a", "b"), 1, f"127.0.0.1:{free_port('127.0.0.1')}")
    links = all_reduce_speed.measure_link_speeds(alone, torch.device("cpu"))
    assert (links.rates, links.broken, links.all_reduce_bytes_per_s) == ({}, {}, None)
    assert f"the links were not measured, without an answer of a at {alone.address}" in links.remarks[0]
    first = replace(alone, rank=0)
    assert all_reduce_speed.measure_link_speeds(first, torch.device("cpu")).remarks == [
        "the links were not measured: b did not come within 1 s"
    ]


def test_flags_of_srun_without_a_slurm_cluster_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["stoker", "doctor", "runs", "--", "--partition=main"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--partition=main: flags of srun need --nodes" in capsys.readouterr().err
