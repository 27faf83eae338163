"""A process that ends what a killed driver leaves behind. Run as `python -m cluster.ray_cluster.ray_guard FOLDER`.

The kernel ends the processes that the driver started; but Ray's agents, which Ray's node started, would stay a minute.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cluster.processes.private_folder import remove_if_abandoned
from cluster.processes.unix_sessions import UnixSession, end_unix_sessions

DONE = "done"


class RayGuard:
    """Inside a `with`, the guard process ends every Unix session passed to `add`, should this process die."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        # A Unix session of its own: what ends the driver's process group must not end the guard.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.ray_cluster.ray_guard", self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self

    def add(self, session: UnixSession) -> None:
        """End `session` too, should this process die."""
        self._send(f"{session.leader} {session.started_ticks}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._send(DONE)
        self._process.communicate()  # closes its input: without DONE it ends what is left

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def guard_ray(orders: IO[str], folder: str) -> None:
    """Read Unix sessions from `orders` until it is closed; then end them and remove `folder`.

    Not when the last line was DONE: the driver has done it itself.
    """
    found = []
    for line in orders:
        if line.strip() == DONE:
            return
        leader, started_ticks = line.split()
        found.append(UnixSession(int(leader), int(started_ticks)))
    end_unix_sessions(found, grace_s=1.0)
    shutil.rmtree(folder, ignore_errors=True)
    remove_if_abandoned(Path(folder).parent)  # the driver's own, should it be gone as well


if __name__ == "__main__":
    guard_ray(sys.stdin, sys.argv[1])
