"""The fork server of this host: started ahead by the driver, or by the first worker that finds none."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.forks.fork_server import LATE_IMPORTS
from configs.checkout import CHECKOUT

__all__ = ["connect", "start_fork_server", "try_connect"]


_START_TIMEOUT_S = 60.0
_CONNECT_POLL_S = 0.02


def start_fork_server(
    path: Path, owner: int, modules: list[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start it in a Unix session of its own; it listens within moments and imports `modules` meanwhile.

    It ends with process `owner`. Without `modules` it imports nothing: for requests of fresh interpreters.
    """
    late = LATE_IMPORTS if modules else ()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "cluster.forks.fork_server", str(path), str(owner), *modules, *late],
        # Threads that an import starts would not survive the fork.
        env={
            **environment,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": _import_path(environment),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _import_path(environment: Mapping[str, str]) -> str:
    """So that it imports the same checkout as this process, wherever it runs."""
    root = str(CHECKOUT)
    return os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])


def try_connect(path: Path) -> socket.socket | None:
    """A connection to the server at `path`, or None when none listens there."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def connect(path: Path, owner: int, modules: list[str], environment: Mapping[str, str]) -> socket.socket:
    """A connection to the server at `path`, which is started if there is none. Raises TimeoutError."""
    connection = try_connect(path)
    if connection is None:
        start_fork_server(path, owner, modules, environment)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while connection is None and time.monotonic() < deadline:
        time.sleep(_CONNECT_POLL_S)
        connection = try_connect(path)
    if connection is None:
        raise TimeoutError(f"no fork server answered at {path} within {_START_TIMEOUT_S:.0f} s")
    return connection
