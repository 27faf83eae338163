"""Real workers: their process group, their failures, and the silence of Ray."""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.forks.child_end import ShellConnection
from cluster.processes.private_folder import private_folder
from cluster.ray_cluster.private_ray import PrivateRay
from cluster.workers.run_workers import WorkerFailure, run_workers
from configs.errors import EXIT_FAILED, EXIT_USER, DataError
from configs.recipe import Workers
from tests.support.small_driver import order_of


def run(
    function: Callable[[dict[str, Any], ShellConnection], None], folder: Path, private: Path, **workers: int
) -> None:
    order = order_of(f"{__name__}:{function.__name__}", {"folder": str(folder)}, modules=["torch"])
    setting = Workers.model_validate(workers)
    run_workers(order, name="t", workers=setting, storage=private / "train", shared=False, poll=lambda: None)


def rank_1_fails(config: dict[str, Any], link: ShellConnection) -> None:
    import torch
    from torch import distributed

    from trainer.rank.process_group import join

    join(link)
    total = torch.tensor([float(distributed.get_rank())])
    distributed.all_reduce(total)
    print("CHATTER of a worker")
    if distributed.get_rank() == 1:
        facts = distributed.get_world_size(), distributed.get_backend(), total.item(), os.environ["OMP_NUM_THREADS"]
        (Path(config["folder"]) / "group").write_text(repr(facts))
        raise ConnectionError("database connection refused\nby its gloo")
    distributed.barrier()


def bad_data(config: dict[str, Any], link: ShellConnection) -> None:
    with (Path(config["folder"]) / "attempts").open("a") as file:
        file.write("x")
    raise DataError("train-000.tar sample 7: not a JPEG")


def in_fresh_process(act: Callable[[Path], None], folder: Path) -> None:
    """Ray reads its settings once in the life of a process: none that has seen it before will do."""
    process = get_context("spawn").Process(target=act, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow  # make test-smoke has a killed worker, and test_failure_count.py and test_verdict.py the first cause
def test_a_failure_names_its_first_cause_a_mistake_is_not_tried_again_and_ray_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_fresh_process(fail_in_two_ways, tmp_path)
    assert capfd.readouterr() == ("", "")


def fail_in_two_ways(tmp_path: Path) -> None:
    os.environ["RAY_ADDRESS"] = "203.0.113.1:6379"
    environment, handlers = dict(os.environ), signal.getsignal(signal.SIGTERM)
    before = set(psutil.Process().children(recursive=True))  # multiprocessing's resource tracker
    with private_folder() as private, PrivateRay(private, 2, 0, lambda line: None):
        session = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
        with pytest.raises(WorkerFailure) as failure:
            run(rank_1_fails, tmp_path, private, count=2, max_failures=0)
        assert str(failure.value) == "worker 1 failed: ConnectionError: database connection refused"
        assert (tmp_path / "group").read_text() == "(2, 'gloo', 1.0, '1')"
        assert "by its gloo" in failure.value.details
        assert failure.value.exit_code == EXIT_FAILED
        with pytest.raises(WorkerFailure) as failure:
            run(bad_data, tmp_path, private, count=1, max_failures=3)
        family = set(psutil.Process().children(recursive=True)) - before
    assert str(failure.value) == "worker 0 failed: train-000.tar sample 7: not a JPEG"
    assert failure.value.exit_code == EXIT_USER
    assert (tmp_path / "attempts").read_text() == "x"
    assert len(family) > 3
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert not session.exists()
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGTERM) is handlers
