"""Hosts of their own network and name on this machine, and a Ray cluster over them that Stoker did not start.

Each is a network and a UTS namespace with an address on a bridge, which lies in a namespace too: nothing touches the
machine's own network. They share the file system, as a cluster with NFS does. Needs root, `ip` and `unshare`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from configs.checkout import CHECKOUT
from tests.support.patient_ray import WAIT_S
from tests.support.ray_cluster import FAST

CAN_MAKE_HOSTS = os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("unshare"))
HEAD_TYPE, HOST_TYPE = "head", "host"  # to Ray's autoscaler
_NETWORK = "10.91.7"
_PORT = 6379
_JOBS_PORT = 8265


class Hosts:
    """A head without worker slots and `count` hosts with one each, from 1; `environment` is what a user needs.

    The hosts from `started` + 1 on have no Ray yet; with `autoscaled` Ray's autoscaler starts it there when it is asked
    for, and ends it when idle. `settings` go into the environment of all of Ray; with `jobs` the head takes `ray job
    submit`.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        *,
        started: int | None = None,
        settings: Mapping[str, str] | None = None,
        jobs: bool = False,
        autoscaled: bool = False,
    ) -> None:
        self._prefix, self._stack, self._rays = f"stoker{os.getpid()}", ExitStack(), list[subprocess.Popen[bytes]]()
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.address, self._folder, self._count = f"{_NETWORK}.10:{_PORT}", folder, count
        self.jobs = f"http://{_NETWORK}.10:{_JOBS_PORT}"
        self._started, self._settings = count if started is None else started, {**FAST, **(settings or {})}
        board = f"true --dashboard-host={_NETWORK}.10 --dashboard-port={_JOBS_PORT}" if jobs else "false"
        self._head = ["--head", f"--port={_PORT}", "--num-cpus=0", *f"--include-dashboard={board}".split()]
        if autoscaled:
            self._head.append(f"--autoscaling-config={self._autoscaling_file()}")
            self._settings |= {"PYTHONPATH": str(CHECKOUT), "AUTOSCALER_UPDATE_INTERVAL_S": "1"}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._remove)
            self._make_namespace("switch")
            _ip("-n", self._named("switch"), "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._named("switch"), "link", "set", "bridge", "up")
            for number in range(self._count + 1):
                self._make_host(number)
            self._start_ray(0, *self._head)
            for number in range(1, self._started + 1):
                self.start_ray(number)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inside(self, number: int, *command: str) -> list[str]:
        """The command line that runs `command` on a host; the head is 0."""
        name = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host{number}"]
        return ["ip", "netns", "exec", self._named(str(number)), *name, *command]

    def processes(self, number: int) -> list[int]:
        """The ids of all processes on a host."""
        return [int(pid) for pid in _ip("netns", "pids", self._named(str(number))).split()]

    def add_address(self, number: int, address: str) -> None:
        """One more, on the host itself."""
        _ip("-n", self._named(str(number)), "addr", "add", f"{address}/32", "dev", "lo")

    def cut(self, number: int) -> None:
        """Take the host's cable out: nothing is refused, everything is lost."""
        _ip("-n", self._named("switch"), "link", "set", f"port{number}", "down")

    def heal(self, number: int) -> None:
        _ip("-n", self._named("switch"), "link", "set", f"port{number}", "up")

    def start_ray(self, number: int, hidden: Path | None = None) -> None:
        """`hidden`: a folder that is another one on this host."""
        self._start_ray(number, *self._worker(), hidden=hidden)

    def lose(self, number: int) -> None:
        """Everything on the host ends at once, as when it loses power."""
        for pid in self.processes(number):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _autoscaling_file(self) -> Path:
        hosts = {
            f"{_NETWORK}.{10 + number}": self._ray_command(number, *self._worker())
            for number in range(self._started + 1, self._count + 1)
        }
        provider = {
            "type": "external",
            "module": "tests.support.host_provider.HostProvider",
            "disable_node_updaters": True,
        }
        cluster = {
            "cluster_name": "hosts",
            "provider": {**provider, "head": f"{_NETWORK}.10", "hosts": hosts},
            "head_node_type": HEAD_TYPE,
            "max_workers": self._count,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                HOST_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": self._count},
            },
            "idle_timeout_minutes": 0.1,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in ("cluster_synced_files", "initialization_commands", "setup_commands")},
            **{f"{kind}_{name}_commands": [] for kind in ("head", "worker") for name in ("setup", "start_ray")},
            "file_mounts_sync_continuously": False,
            "upscaling_speed": 1.0,
        }
        path = self._folder / "autoscaling.yaml"
        path.write_text(json.dumps(cluster))
        return path

    def _worker(self) -> list[str]:
        return [f"--address={self.address}", "--num-cpus=1"]

    def _ray_command(self, number: int, *options: str, hidden: Path | None = None) -> list[str]:
        hide = (
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)] if hidden else []
        )
        command = [
            *hide,
            sys.executable,
            "-m",
            "tests.support.patient_ray",
            "start",
            "--block",
            "--disable-usage-stats",
        ]
        place = [f"--node-ip-address={_NETWORK}.{10 + number}", f"--temp-dir={self._folder / f'ray{number}'}"]
        return self.inside(number, *command, *place, *options)

    def _named(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _make_namespace(self, name: str) -> None:
        _ip("netns", "add", self._named(name))

    def _make_host(self, number: int) -> None:
        name, switch, port = self._named(str(number)), self._named("switch"), f"port{number}"
        self._make_namespace(str(number))
        _ip("link", "add", "net", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
        _ip("-n", name, "addr", "add", f"{_NETWORK}.{10 + number}/24", "dev", "net")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "net", "up")
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")

    def _start_ray(self, number: int, *options: str, hidden: Path | None = None) -> None:
        log = self._folder / f"host{number}.log"
        ray = subprocess.Popen(
            self._ray_command(number, *options, hidden=hidden),
            cwd=CHECKOUT,
            env={**os.environ, **self.environment, **self._settings, "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._rays.append(ray)
        deadline = time.monotonic() + 2 * WAIT_S
        while "will now block forever" not in log.read_text():
            assert ray.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def _remove(self) -> None:
        names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(f"{self._prefix}-")]
        for name in names:
            for pid in _ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for ray in self._rays:
            ray.wait()
        for name in names:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
