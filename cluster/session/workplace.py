"""What one `stoker train` has on its host besides Ray: a private folder, and the fork server that imports ahead."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.forks.start_fork_server import start_fork_server
from cluster.processes.private_folder import private_folder

__all__ = ["Workplace", "workplace"]


@dataclass(frozen=True)
class Workplace:
    """`fork_server` serves the workers of this host only."""

    folder: Path
    fork_server: Path
    host: str


@contextmanager
def workplace(modules: list[str]) -> Iterator[Workplace]:
    """Inside, the fork server imports `modules`, and then serves; at the end it and the folder are gone.

    Should this process be killed, the fork server ends by itself, and the folder goes with the guard of the session or
    at the next start.
    """
    with private_folder() as folder:
        path = folder / "fork"
        server = start_fork_server(path, os.getpid(), modules, os.environ)
        try:
            yield Workplace(folder, path, socket.gethostname())
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()  # its processes ask the kernel to die with it
    server.wait()
