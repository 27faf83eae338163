"""Forks training processes from a process that has the slow imports behind it: one per host.

Run as `python -m cluster.forks.fork_server SOCKET OWNER_PID MODULE...`. It listens at once, imports the modules, and
then forks one process per connection, which runs what the connection's first line asks for (child_end.py). It ends,
with all its processes, when the process OWNER_PID does. Importing torch and DeepSpeed takes seconds of a cpu; a fork
takes milliseconds.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.processes.process_tree import die_with_parent
from cluster.processes.stop_signals import HANDLED

_REQUEST_TIMEOUT_S = 30.0
# What the modules below import only when they are first used, seconds later and in every process.
LATE_IMPORTS = ("torch._dynamo", "tensorboard.compat.proto.event_pb2")


def receive_line(connection: socket.socket) -> tuple[bytes, bytes]:
    """The first line from `connection`, and what came after it. Raises ConnectionError when it is closed before."""
    received = b""
    while b"\n" not in received:
        block = connection.recv(1 << 16)
        if not block:
            raise ConnectionError("closed before a whole line was sent")
        received += block
    line, _, rest = received.partition(b"\n")
    return line, rest


class ForkServer:
    """One thread, as a fork has no other: accepts, forks, and sends each connection how its process ended."""

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._owner = os.pidfd_open(owner)  # readable when the owner ends; its number may be given to another then
        self._connections: dict[int, socket.socket] = {}
        self._awake, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # So that `select` notices a child that ends: SIGCHLD alone would only restart it (PEP 475).
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Until the owner has ended."""
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._owner, self._awake], [], [])
            if self._owner in ready:
                break
            if self._awake in ready:
                os.read(self._awake, 4096)
                self._reap()
            if self._listener.fileno() in ready:
                self._accept()
        for pid in self._connections:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_TIMEOUT_S)
        try:
            line, rest = receive_line(connection)
        except OSError:  # whoever asked has gone
            connection.close()
            return
        connection.settimeout(None)
        request: dict[str, Any] = json.loads(line)
        pid = self._start_fresh(connection, line) if request["fresh"] else self._fork(connection, request, rest)
        self._connections[pid] = connection

    def _fork(self, connection: socket.socket, request: dict[str, Any], rest: bytes) -> int:
        server = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            # First the server's signal handling, which would write into the server's pipe; then the tie to the server;
            # then what may fail.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(server)
            self._listener.close()
            for other in self._connections.values():
                other.close()  # or they would not end with their own process
            from cluster.forks.child_end import run_request

            run_request(connection, request, rest)
        finally:
            os._exit(1)

    def _start_fresh(self, connection: socket.socket, line: bytes) -> int:
        """A new interpreter: CUDA does not survive a fork once any import has touched the driver."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.forks.child_end", str(connection.fileno()), str(os.getpid())],
            stdin=subprocess.PIPE,
            pass_fds=[connection.fileno()],
        )
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(line + b"\n")
        return process.pid

    def _reap(self) -> None:
        while self._connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            # Forgotten as soon as it is reaped: its number may be another process's then, which is not to be killed.
            connection = self._connections.pop(pid, None)
            if connection is None:
                continue
            with suppress(OSError):  # nobody listens any more
                connection.sendall(json.dumps({"died": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def listen(path: Path) -> socket.socket | None:
    """A listening socket at `path`, which only this user can reach; None when a live server is there already.

    Bound under another name and renamed, so that nobody finds it at `path` before its mode is set and it listens.
    """
    listener = socket.socket(socket.AF_UNIX)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    listener.bind(str(temporary))
    temporary.chmod(0o600)
    listener.listen(256)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            temporary.rename(path)
            return listener
    temporary.unlink()
    listener.close()
    return None


def main(path: Path, owner: int, modules: list[str]) -> None:
    """Listen at `path`, import `modules`, serve until process `owner` ends. Returns at once beside a live server."""
    # A terminal's Ctrl-C and the end of a `ray job` reach every process of a run: the driver alone acts on them.
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
    listener = listen(path)
    if listener is None:
        return
    # After `listen`: connections wait in its queue meanwhile, and no second server is started beside this one.
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector would touch, and so copy, every page that the forks share
    ForkServer(listener, owner).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
