"""A real private Ray: what it leaves behind, who may talk to it, and what signals do to it."""

import http.client
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.processes.private_folder import private_folder, remove_abandoned
from configs.checkout import CHECKOUT

HANG_S = 400.0  # no test takes so long, on a busy machine either
GCS_CLIENT = (
    "import sys, ray._raylet as r\n"
    "g = r.GcsClient(address=sys.argv[1])\n"
    "print('NODES', len(g.get_all_node_info(timeout=60)))"
)
RAY_DRIVER = "import sys, ray\nray.init(address=sys.argv[1])\nprint('NODES', len(ray.nodes()))"


class Driver:
    """A driver process in a process group of its own, with one worker that runs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.small_driver", str(folder)],
                cwd=CHECKOUT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @contextmanager
    def beating(self) -> Iterator["Driver"]:
        try:
            wait_for(lambda: self.beats() > 0, self.output)
            yield self
        finally:
            self.process.kill()
            self.process.wait()

    def beats(self) -> int:
        path = self.folder / "beats"
        return len(path.read_text().split()) if path.exists() else 0

    def private_folder(self) -> Path:
        return Path((self.folder / "session").read_text()).parents[1]

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def output(self) -> str:
        return (self.folder / "output").read_text()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Driver, Driver]]:
    """Two at once, on one host."""
    folder = tmp_path_factory.mktemp("drivers")
    with ExitStack() as stack:
        first, second = (stack.enter_context(Driver(folder / name).beating()) for name in ("a", "b"))
        yield first, second


def wait_for(condition: Callable[[], bool], describe: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.1)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_only_the_token_opens_the_private_ray(drivers: tuple[Driver, Driver]) -> None:
    folder = drivers[0].private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = next(folder.glob("ray-*/token"))
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    port = next(folder.glob("ray-*/ray/session_*/gcs_server_port*")).read_text().strip()

    def connect(client: str, **settings: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", client, f"127.0.0.1:{port}"],
            env=clean | settings | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # or Ray looks on another address
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        return done.stdout + done.stderr

    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    twice = {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # Ray's driver would ask for 20 s
    wrong = [{"RAY_AUTH_MODE": "disabled"} | twice, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64} | twice]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda c: connect(c[0], **c[1]), product((GCS_CLIENT, RAY_DRIVER), (right, *wrong))))
    for accepted, *refused in (answers[:3], answers[3:]):
        assert "NODES 1" in accepted
        for answer in refused:
            assert "NODES" not in answer
            assert "nauthenticated" in answer


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["none", "wrong"])
def test_no_port_takes_a_job_by_http(drivers: tuple[Driver, Driver], token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for connection in _listening(drivers[0]):
        with suppress(OSError, http.client.HTTPException):  # gRPC answers no HTTP/1.1
            request = http.client.HTTPConnection("127.0.0.1", connection.laddr.port, timeout=3)
            request.request("POST", "/api/jobs/", '{"entrypoint": "touch /tmp/pwned"}', headers)
            assert request.getresponse().status >= 400


def test_the_token_stands_in_its_own_file_only(drivers: tuple[Driver, Driver]) -> None:
    folder = drivers[0].private_folder()
    file = next(folder.glob("ray-*/token"))
    secret = file.read_bytes()
    for process in (psutil.Process(drivers[0].process.pid), *drivers[0].descendants()):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{process.pid}/{name}").read_bytes(), (process, name)
    files = [path for path in (*folder.rglob("*"), *drivers[0].folder.rglob("*")) if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if path != file and secret in path.read_bytes()] == []


def test_ray_listens_on_loopback_only(drivers: tuple[Driver, Driver]) -> None:
    listening = _listening(drivers[0])
    assert len(listening) > 3
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening


def _listening(driver: Driver) -> list[Any]:
    family = {driver.process.pid, *(p.pid for p in driver.descendants())}
    return [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in family]


def test_ctrl_c_reaches_the_driver_alone_and_a_second_one_ends_everything(drivers: tuple[Driver, Driver]) -> None:
    driver = drivers[0]
    family, folder = driver.descendants(), driver.private_folder()
    os.killpg(driver.process.pid, signal.SIGINT)
    wait_for((driver.folder / "requested").exists, driver.output)
    beats = driver.beats()
    wait_for(lambda: driver.beats() > beats + 10, driver.output)
    assert alive(family) == family

    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.process.wait(timeout=HANG_S) != 0
    # Ray may crash while it is shut down under its own thread; then the guard does the rest.
    wait_for(lambda: alive(family) == [] and not folder.exists(), lambda: str(alive(family)) + driver.output())


def test_a_killed_driver_takes_its_ray_and_its_folder_along(drivers: tuple[Driver, Driver]) -> None:
    driver = drivers[1]
    family, folder = driver.descendants(), driver.private_folder()
    assert len(family) > 5
    assert folder not in remove_abandoned(folder.parent)  # its owner lives
    driver.process.kill()
    driver.process.wait()
    wait_for(lambda: alive(family) == [] and not folder.exists(), lambda: str(alive(family)))


def test_a_folder_whose_owner_was_killed_is_removed_at_the_next_start() -> None:
    hold = (
        "import sys; from cluster.processes.private_folder import private_folder\n"
        "with private_folder() as folder: print(folder, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert folder not in remove_abandoned(folder.parent)
        owner.kill()
        owner.wait()
    with private_folder() as own:
        assert own.exists()
        assert not folder.exists()
    assert not own.exists()
