"""How many failures are one too many, and which errors only follow from a rank that is lost."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.run.faults import is_echo
from cluster.workers.failure_count import MOST_LOST_HOSTS, Failures
from tests.support.processes import run_in_processes


def test_only_failures_without_a_newer_checkpoint_in_between_add_up() -> None:
    failures, counts = Failures(), []
    for committed in (0, 0, 5, 5, 5, 10):
        failures = failures.another(committed)
        counts.append(failures.count)
    assert counts == [1, 2, 1, 2, 3, 1]


def test_a_lost_host_costs_no_failure_but_hosts_are_not_lost_without_end() -> None:
    failures = Failures().another(0)
    for _ in range(MOST_LOST_HOSTS):
        failures = failures.another(0, lost_host=True)
        assert failures.may_go_on(1)
    assert not failures.another(0).may_go_on(1)
    assert "workers.max_failures" in failures.another(0).limit(1)
    flapping = failures.another(0, lost_host=True)
    assert not flapping.may_go_on(1)
    assert flapping.limit(1) == "after 20 restarts for lost hosts without a newer checkpoint"
    assert flapping.another(5, lost_host=True).may_go_on(0)


def see_rank_1_die(told: Path) -> None:
    """Rank 0 writes what each use of a group, or of a store, that rank 1 has left behind raises."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    groups = [dist.new_group(backend="gloo") for _ in range(4)]
    here = dist.get_rank() == 1
    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if here else None
    ports: list[int] = [0, 0]
    dist.all_gather_object(ports, served.port if served else 0)
    store = served or TCPStore("127.0.0.1", ports[1], is_master=False, timeout=timedelta(minutes=5))
    for group in groups:  # its connections are there
        dist.all_reduce(torch.ones(1), group=group)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)
    uses: list[Callable[[], object]] = [
        lambda: dist.all_reduce(torch.ones(1), group=groups[0]),
        lambda: dist.barrier(group=groups[1]),
        lambda: dist.broadcast(torch.ones(1), src=1, group=groups[2]),
        lambda: dist.all_gather_object([None, None], "mine", group=groups[3]),
        lambda: store.get("never set"),
    ]
    told.write_text("\n".join(_seen(use) for use in uses))


def _seen(use: Callable[[], object]) -> str:
    try:
        use()
    except Exception as error:
        try:
            raise KeyError("while cleaning up")
        except KeyError as later:
            return f"{type(error).__name__} {is_echo(error)} {is_echo(later)}"
    return "no error"


def test_what_torch_raises_for_a_dead_rank_is_an_echo_and_so_is_what_comes_of_it(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a worker process died"):
        run_in_processes(see_rank_1_die, 2, tmp_path / "store", tmp_path / "told")
    kinds = ["RuntimeError"] * 4 + ["DistNetworkError"]
    assert (tmp_path / "told").read_text().splitlines() == [f"{kind} True True" for kind in kinds]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("database connection refused"),
        ConnectionResetError(104, "Connection reset by peer"),
        ModuleNotFoundError("no module named nccl_tools"),
        FileNotFoundError(2, "No such file or directory", "/data/gloo/transport/tcp/pair.cc"),
        RuntimeError("gloo: Connection closed by peer, said the database"),
        RuntimeError("[enforce fail at /pytorch/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. No interface"),
    ],
)
def test_words_of_a_lost_connection_do_not_make_a_cause_an_echo(error: Exception) -> None:
    assert not is_echo(error)


@pytest.mark.parametrize(
    ("message", "echo"),
    [
        ("NCCL error in: NCCLUtils.cpp:77\nncclRemoteError: A call failed possibly due to a network error", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("NCCL error in: ProcessGroupNCCL.cpp:1\nncclUnhandledCudaError: Call to CUDA function failed.", False),
        ("NCCL error in: NCCLUtils.cpp:1\nncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0", False),
    ],
)
def test_of_nccls_errors_only_the_remote_ones_are_echoes(message: str, echo: bool) -> None:
    from torch.distributed import DistBackendError

    assert is_echo(DistBackendError(message)) is echo
