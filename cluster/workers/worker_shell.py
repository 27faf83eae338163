"""What Ray Train runs as its worker: a shell around the training process, which is forked beside it.

The shell needs no torch, so that Ray has it up in a second; the process has torch and DeepSpeed from the fork server.
If either dies the other ends, and Ray Train sees the worker fail.
"""

import os
import signal
import socket
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import configs.errors
from cluster.forks.parent_end import ForkedWorker, Message
from cluster.forks.start_fork_server import connect, try_connect
from cluster.hosts.network import find_interface
from cluster.ray_cluster.key_value import GroupStore, RunStore
from cluster.run.faults import FaultPlace
from cluster.run.ledger import Ledger
from cluster.run.run_events import Fault
from cluster.run.run_folder import RunFolder
from configs.errors import StokerError, WorkerError, WorkersLeftError

__all__ = ["ShellOrder"]


_LOOK_S = 0.25
_MEET_S = 0.05  # while the ranks look for each other
_PUBLISH_S = 0.5
_ECHO_S = 1.0  # two looks of Ray Train
_DUMPS_S = 12.0  # a shell that is stopped itself will never have dumped


@dataclass(frozen=True)
class ShellOrder:
    """What every shell of a run is told; plain data."""

    run: str
    target: str  # module:function, called with (config, shell) in the training process
    config: dict[str, Any]
    modules: list[str]  # that the fork server has imported
    backend: str
    cpus: int  # threads of one worker
    fresh: bool  # a new interpreter instead of a fork
    working_folder: str
    server_host: str = ""  # where the driver has a fork server, and its socket
    server_path: str = ""
    run_folder: str | None = None
    invocation: str = ""

    @property
    def folder(self) -> RunFolder | None:
        """Where events and logs go; None: nowhere."""
        return None if self.run_folder is None else RunFolder(Path(self.run_folder))

    def encode(self) -> dict[str, Any]:
        """For Ray, which carries it to every node."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """This worker among the others."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    node_rank: int
    ip: str


_group: list[str] = []


def adopt_group(name: str) -> None:
    """Called in the worker before `run_shell`: which start of the workers it belongs to."""
    _group[:] = [name]


def run_shell(config: dict[str, Any]) -> None:
    """Until the training process has ended. Raises its error, WorkerError for its death, WorkersLeftError to return."""
    order = ShellOrder(**config)
    place = _place()
    store = RunStore(order.run).group(_group[0])
    try:
        with closing(_start(order, place)) as worker:
            _Shell(order, place, store, worker).watch()
    finally:
        store.put("ended", place.rank)  # the others will follow: their silence is no hang


def _place() -> Place:
    import ray.train
    import ray.util

    context = ray.train.get_context()
    return Place(
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        context.get_node_rank(),
        ray.util.get_node_ip_address(),
    )


def _start(order: ShellOrder, place: Place) -> ForkedWorker:
    connection = _connect(order)
    request = {
        "name": f"stoker-rank-{place.rank}",
        "target": order.target,
        "config": order.config,
        "fresh": order.fresh,
        "environment": {**os.environ, **_environment(order, place)},
        "working_folder": order.working_folder,
    }
    return ForkedWorker(connection, request)


def _connect(order: ShellOrder) -> socket.socket:
    """To the fork server that the driver started on its own host, else to that of this Ray node."""
    from ray._private.worker import global_worker

    connection = None
    if socket.gethostname() == order.server_host:
        connection = try_connect(Path(order.server_path))
    if connection is None:
        path = Path(global_worker.node.get_session_dir_path()) / f"fork-{_node_id()[:12]}"
        modules = [] if order.fresh else order.modules
        connection = connect(path, os.getppid(), modules, os.environ)
    return connection


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _environment(order: ShellOrder, place: Place) -> dict[str, str]:
    """As torchrun's, and the network interface that leads to the other hosts."""
    interface = find_interface(place.ip)
    networks = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world),
        "NODE_RANK": str(place.node_rank),
        "OMP_NUM_THREADS": str(order.cpus),
        "STOKER_BACKEND": order.backend,
        "STOKER_HOST_IP": place.ip,
        **networks,
    }


class _Shell:
    def __init__(self, order: ShellOrder, place: Place, store: GroupStore, worker: ForkedWorker) -> None:
        self._order, self._place, self._store, self._worker = order, place, store, worker
        self._started = time.time()
        self._published = 0.0
        self._beats = self._committed = 0
        self._leaving = self._met = False
        self._host, self._node = socket.gethostname(), _node_id()

    def watch(self) -> None:
        """Until the process has ended; raises what is to be raised."""
        while True:
            for message in self._worker.receive(_LOOK_S if self._met else _MEET_S):
                if "listening" in message:
                    self._store.put("master", [self._place.ip, message["listening"]])
                elif "result" in message:
                    return self._finish(message["result"])
                elif "error" in message:
                    self._let_the_cause_be_told_first(message["error"])
                    raise _as_error(message["error"])
                elif "died" in message:
                    self._died(message["died"])
            self._report_committed()
            if not self._met and (master := self._store.get("master")):
                self._met = True
                self._worker.send(master=master)
            if time.monotonic() - self._published >= _PUBLISH_S:
                self._publish()

    def _let_the_cause_be_told_first(self, told: Message) -> None:
        """Ray Train stops all at the first error that it sees, and would never hear of another."""
        if told["echo"]:
            time.sleep(_ECHO_S)

    def _report_committed(self) -> None:
        """At once: what counts failures must know of a checkpoint before the next one."""
        committed = self._worker.beat.get("committed", 0)
        if committed > self._committed:
            self._committed = committed
            RunStore(self._order.run).put("committed", committed)

    def _publish(self) -> None:
        """Twice a second: our beat out, the orders in."""
        self._published = time.monotonic()
        self._beats += 1
        beat = self._worker.beat
        facts = {
            "shell": self._beats,
            "host": self._host,
            "node": self._node,
            "shell_pid": os.getpid(),
            "shell_started": self._started,
        }
        self._store.put(f"beat/{self._place.rank}", {**beat, **facts, **asdict(self._worker.position)})
        order = self._store.get("order") or {}
        if "abort" in order:
            self._abort(order["abort"])
        if "leave" in order and not self._leaving:
            self._leaving = True
            self._worker.send(leave=order["leave"])

    def _abort(self, why: str) -> NoReturn:
        """End the process once every rank's stacks are in the logs: the first death would change the others'."""
        self._worker.dump_stacks(self._log())
        self._store.put(f"dumped/{self._place.rank}", True)
        deadline = time.monotonic() + _DUMPS_S
        while time.monotonic() < deadline and not all(
            self._store.get(f"dumped/{rank}") for rank in range(self._place.world)
        ):
            time.sleep(_MEET_S)
        self._worker.kill()
        raise WorkerError(why)

    def _finish(self, result: Message | None) -> None:
        self._report_committed()
        if result and result.get("again"):
            raise WorkersLeftError(result["again"])

    def _log(self) -> Path | None:
        attempt = self._worker.beat.get("attempt")
        folder = self._order.folder
        return None if attempt is None or folder is None else folder.log(attempt, self._place.rank)

    def _died(self, status: int | None) -> None:
        """Tell of a death that the process could not tell of itself. Raises WorkerError."""
        beat, position, where = self._worker.beat, self._worker.position, f"rank {self._place.rank} on {self._host}"
        cause = _cause_of_death(status)
        at = f"at step {position.step + 1} ({position.phase})"
        message = f"{where} (pid {self._worker.pid}) {cause} {at}"
        if self._order.folder is not None:
            place = FaultPlace(
                attempt=beat.get("attempt", 0),
                invocation=self._order.invocation,
                rank=self._place.rank,
                host=self._host,
                pid=self._worker.pid,
                step=position.step,
                phase=position.phase,
                log=str(self._log() or ""),
            )
            Ledger(self._order.folder.ledger).append(Fault.seen("WorkerDied", message, place))
        raise WorkerError(message)


def _cause_of_death(status: int | None) -> str:
    if status is None:
        return "was lost with its host's fork server"
    if status >= 0:
        return f"left with exit code {status}"
    name = signal.Signals(-status).name
    if name == "SIGKILL":
        return "was ended by SIGKILL (by somebody, or by the kernel for want of memory)"
    return f"was ended by {name}"


def _as_error(told: Message) -> Exception:
    """The process's error as one of this process; anything but a StokerError becomes a WorkerError."""
    if told["own"]:
        kind = getattr(configs.errors, told["kind"], StokerError)
        error: Exception = kind(told["message"])
        return error
    return WorkerError(f"{told['kind']}: {told['message']}\n{told['trace']}", echo=told["echo"])
