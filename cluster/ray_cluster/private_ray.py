"""A private Ray on this host for one run: loopback only, behind a token, gone without a trace afterwards."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.hosts.host_fitness import OBJECT_STORE_BYTES
from cluster.processes.unix_sessions import UnixSession, end_unix_sessions
from cluster.ray_cluster.ray_guard import RayGuard
from configs.errors import StokerError

__all__ = ["PrivateRay"]


LOOPBACK = "127.0.0.1"
_VITAL = ("gcs_server", "raylet")


class PrivateRay:
    """Ray with `cpus` and `gpus` inside a `with`, which must be in the main thread: Ray's processes die with it.

    At the end, however it comes, none of its processes and files remain, and the environment is what it was. Should
    this process be killed, the kernel and a guard process do the same.
    Raises StokerError when Ray cannot start.
    """

    def __init__(self, folder: Path, cpus: int, gpus: int, say: Callable[[str], None]) -> None:
        """`folder`: a private one (cluster/processes/private_folder.py); Ray's files go below it."""
        self.cpus, self.gpus, self._say = cpus, gpus, say
        self._folder = folder
        self._stack = ExitStack()
        self._started: list[UnixSession] = []

    def __enter__(self) -> Self:
        self._say(f"starting Ray on this host: {self.cpus} cpus, {self.gpus} gpus")
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=self._folder))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(_environment(_settings(folder, self.gpus)))
            guard = stack.enter_context(RayGuard(str(folder)))
            # Undone in reverse: Ray ends first, while the guard still stands; environment and files come last.
            stack.callback(_stop, self._started)
            with _in_unix_sessions(self._started, guard), _no_helpers(), _signal_handlers_kept():
                _start(folder, self.cpus, self.gpus)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def lost(self) -> str | None:
        """The name of a process of Ray's own (GCS, raylet) that is gone, if any is."""
        from ray._private.worker import global_worker

        for name, processes in global_worker.node.all_processes.items():
            if any(info.process.poll() is not None for info in processes) and name in _VITAL:
                return str(name)
        return None


def _settings(folder: Path, gpus: int) -> dict[str, str]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Named for Windows and macOS; on Linux too it makes every part of Ray listen on loopback only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # by default 15: a worker's shell must not starve beside the training
        "RAY_enable_metrics_collection": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # Workers started ahead never fit Ray Train's (their runtime environment differs): they only cost time.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one host: when it goes, all goes
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    return settings if gpus else settings | {"DS_ACCELERATOR": "cpu"}


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """`settings`, and no other RAY_* variable: an address or a token of the surroundings must not reach this Ray."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _in_unix_sessions(started: list[UnixSession], guard: RayGuard) -> Iterator[None]:
    """Ray's processes start in Unix sessions of their own, which go to `started` and to `guard`.

    A signal to the process group of the terminal or of `timeout` then reaches the driver alone, and by `started`
    Ray's processes are known from any other.
    """
    from ray._private import services

    original = services.ConsolePopen

    def popen(*arguments: Any, **options: Any) -> Any:
        process = original(*arguments, **options, start_new_session=True)
        started.append(UnixSession.of(process.pid))
        # At once: should the driver be killed in the next moment, nobody else knows of this process.
        guard.add(started[-1])
        return process

    services.ConsolePopen = popen
    try:
        yield
    finally:
        services.ConsolePopen = original


@contextmanager
def _no_helpers() -> Iterator[None]:
    """Without the autoscaler, the log monitor, and the server of the dashboard, which Ray starts even where it is off.

    This Ray has no use for them, and each is a Python process that takes seconds to start, one of which Ray waits for.
    """
    from ray._private import services
    from ray._private.node import Node

    absent = (
        (services, "start_api_server", ("", None)),
        (Node, "start_monitor", None),
        (Node, "start_log_monitor", None),
    )
    with ExitStack() as stack:
        for owner, name, result in absent:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, partial(_answer, result))
        yield


def _answer(result: Any, *_: Any, **__: Any) -> Any:
    return result


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(folder: Path, cpus: int, gpus: int) -> None:
    # Imported here because Ray reads its settings from the environment when it is imported.
    import ray
    from ray._private import worker
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
    worker._worker_logs_enabled = False  # or Ray prints its view of a dead worker in the middle of ours
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(folder / "ray"),  # Ray opens it to every user; `folder` is closed
            _node_ip_address=LOOPBACK,
        )
    except Exception as error:  # Ray has no class for it; among others when the host is so busy that 30 s are too few
        raise StokerError(f"Ray did not start on this host: {error}") from error
    address = ray.util.get_node_ip_address()
    if address != LOOPBACK:
        raise StokerError(
            f"Ray listens on {address}, not on {LOOPBACK} only: import cluster.ray_cluster.private_ray before ray"
        )


def _stop(started: list[UnixSession]) -> None:
    import ray

    try:
        ray.shutdown()
    finally:  # it leaves agents behind, and fails itself when its raylet is dead
        end_unix_sessions(started, grace_s=3.0)
