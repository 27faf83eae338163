"""Speed of all-reduces between hosts: pairs of neighbours first, which shows the bad ones, then all of them at once."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from cluster.hosts.health_report import CheckPlan, pair_rounds
from cluster.hosts.network import address_towards, free_port, interface_of
from configs.checkout import CHECKOUT
from configs.errors import UnfitHostError, first_line
from trainer.host_health.disk_and_matmul_speed import devices

__all__ = ["all_reduce_between_processes"]


CPU_BYTES, ACCELERATOR_BYTES = 4 << 20, 64 << 20
MEASURE_S = 0.4  # or two rounds
# Together, with up to three rounds of pairs, well below TIMEOUT_S of cluster/hosts/health_process.py: a host that waits
# for another one must not seem to hang itself.
RENDEZVOUS_TIMEOUT_S = 45.0
COLLECTIVE_TIMEOUT_S = 10.0
_PROCESSES_S = 2 * RENDEZVOUS_TIMEOUT_S


@dataclass(frozen=True)
class LinkSpeeds:
    """What one host measured with others; the fields are those of HostReport."""

    rates: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    all_reduce_bytes_per_s: float | None = None
    remarks: list[str] = field(default_factory=list)


def measure_link_speeds(plan: CheckPlan, device: torch.device) -> LinkSpeeds:
    """Measure this host with its neighbours, then with all hosts: on every host of `plan` at the same time.

    When the others cannot be met, that is a remark: from here nobody can know whose fault it is.
    """
    if len(plan.hosts) < 2:
        return LinkSpeeds()
    _choose_interface(plan.address)
    try:
        store = _rendezvous(plan)
        try:
            return _measure(plan, store, device)
        finally:
            # Rank 0 leaves last: the store ends with its process, while others may still be reading from it.
            store.set(f"done/{plan.rank}", "")
            if plan.rank == 0:  # it has the store
                _wait(store, [f"done/{rank}" for rank in _present(store, plan)])
    except (OSError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        where = f"{plan.hosts[0]} at {plan.address}"
        return LinkSpeeds(remarks=[f"the links were not measured, without an answer of {where}: {first_line(error)}"])


def _measure(plan: CheckPlan, store: TCPStore, device: torch.device) -> LinkSpeeds:
    store.set(f"here/{plan.rank}", "")
    if missing := _missing(store, "here", plan):
        return LinkSpeeds(
            remarks=[f"the links were not measured: {missing} did not come within {RENDEZVOUS_TIMEOUT_S:.0f} s"]
        )
    # All have come: from here on a host that fails is missed within COLLECTIVE_TIMEOUT_S.
    rates, broken = _pairs(plan, store, device)
    store.set(f"pairs/{plan.rank}", json.dumps(broken))
    if missing := _missing(store, "pairs", plan):
        return LinkSpeeds(rates, broken, remarks=[f"not all links were measured: {missing} left"])
    # With a broken pair an all-reduce of all hosts would only run into its timeout.
    if any(json.loads(store.get(f"pairs/{rank}")) for rank in range(len(plan.hosts))):
        return LinkSpeeds(rates, broken)
    return LinkSpeeds(rates, broken, *_all_hosts(plan, store, device))


def all_reduce_between_processes() -> float:
    """What each of two processes on this host sends a second. Raises UnfitHostError."""
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    plans = [CheckPlan("", ("one process", "another"), rank, address) for rank in range(2)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    commands = [[sys.executable, "-m", "trainer.host_health.all_reduce_speed", plan.encode()] for plan in plans]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
    try:
        outputs = [process.communicate(timeout=_PROCESSES_S)[0] for process in started]
    except subprocess.TimeoutExpired as error:
        raise UnfitHostError(f"an all-reduce between two processes took over {_PROCESSES_S:.0f} s") from error
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise UnfitHostError("an all-reduce between two processes broke off, see above")
    links = LinkSpeeds(**json.loads(outputs[0]))
    if links.all_reduce_bytes_per_s is None:
        raise UnfitHostError(f"no all-reduce between two processes: {[*links.broken.values(), *links.remarks]}")
    return links.all_reduce_bytes_per_s


def _rendezvous(plan: CheckPlan) -> TCPStore:
    """Left to itself, torch's store would listen on every address."""
    host, _, port = plan.address.rpartition(":")
    own = socket.create_server((host, int(port))).detach() if plan.rank == 0 else None
    timeout = timedelta(seconds=RENDEZVOUS_TIMEOUT_S)
    return TCPStore(
        host, int(port), is_master=plan.rank == 0, wait_for_workers=False, timeout=timeout, master_listen_fd=own
    )


def _missing(store: TCPStore, what: str, plan: CheckPlan) -> str:
    """Names of hosts that have not set their key below `what` within RENDEZVOUS_TIMEOUT_S, with commas."""
    keys = [f"{what}/{rank}" for rank in range(len(plan.hosts))]
    if _wait(store, keys):
        return ""
    return ", ".join(host for host, key in zip(plan.hosts, keys, strict=True) if not store.check([key]))


def _present(store: TCPStore, plan: CheckPlan) -> list[int]:
    return [rank for rank in range(len(plan.hosts)) if store.check([f"here/{rank}"])]


def _wait(store: TCPStore, keys: list[str]) -> bool:
    try:
        store.wait(keys, timedelta(seconds=RENDEZVOUS_TIMEOUT_S))
    except RuntimeError:
        return False
    return True


def _pairs(plan: CheckPlan, store: TCPStore, device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    rates: dict[str, float] = {}
    broken: dict[str, str] = {}
    for pairs in pair_rounds(len(plan.hosts)):
        for pair in pairs:
            if plan.rank in pair:
                other = plan.hosts[sum(pair) - plan.rank]
                part = PrefixStore(f"pair-{pair[0]}-{pair[1]}", store)
                try:
                    rates[other] = _all_reduce(part, pair.index(plan.rank), 2, device)
                except (RuntimeError, UnfitHostError) as error:  # torch's own errors are RuntimeErrors
                    broken[other] = first_line(error)
    return rates, broken


def _all_hosts(plan: CheckPlan, store: TCPStore, device: torch.device) -> tuple[float | None, list[str]]:
    try:
        return _all_reduce(PrefixStore("all", store), plan.rank, len(plan.hosts), device), []
    except (RuntimeError, UnfitHostError) as error:
        return None, [f"no all-reduce of all hosts together: {first_line(error)}"]


def _all_reduce(store: PrefixStore, rank: int, world: int, device: torch.device) -> float:
    """What each process sends a second, in the best of many rounds. Raises RuntimeError or UnfitHostError."""
    size = CPU_BYTES if device.type == "cpu" else ACCELERATOR_BYTES
    with _group(store, rank, world, device):
        _sum_s(size, world, device)  # connects
        first_s = _sum_s(size, world, device)
        # The ranks must agree on the number of rounds, or the last ones would wait for a partner that has left.
        more = torch.tensor(max(1, int(MEASURE_S / first_s)), device=device)
        dist.all_reduce(more, dist.ReduceOp.MIN)
        best_s = min(first_s, *(_sum_s(size, world, device) for _ in range(int(more))))
    return 2 * (world - 1) / world * size / best_s


def _sum_s(size: int, world: int, device: torch.device) -> float:
    """Seconds of one sum of `size` bytes."""
    values = torch.ones(size // 4, device=device)
    started = time.perf_counter()
    dist.all_reduce(values)
    float(values[0])  # waits for the device
    seconds = time.perf_counter() - started
    if not bool((values == float(world)).all()):
        raise UnfitHostError("an all-reduce gave a wrong sum")
    return seconds


@contextmanager
def _group(store: PrefixStore, rank: int, world: int, device: torch.device) -> Iterator[None]:
    backend = dist.get_default_backend_for_device(device)
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    except RuntimeError:
        _forget_group()
        raise
    try:
        yield
    finally:
        dist.destroy_process_group()


def _forget_group() -> None:
    """torch counts groups, and two processes meet under that number: one that has failed must not count."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()


def _choose_interface(address: str) -> None:
    """Of the collectives, unless the user has: the one that leads to rank 0."""
    host = address.rpartition(":")[0]
    interface = interface_of(address_towards(host))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, interface)


if __name__ == "__main__":
    print(json.dumps(asdict(measure_link_speeds(CheckPlan.decode(sys.argv[1]), devices()[0]))))  # noqa: T201
