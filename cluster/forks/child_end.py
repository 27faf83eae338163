"""The training process's end of the line to its shell in Ray (cluster/workers/worker_shell.py).

Lines of JSON. To the shell: `beat` (what the process does), `listening` (rank 0's rendezvous port), `result` or `error`
at the end. From the shell: `master` (where the ranks meet), `leave` (why the workers should leave), `dump`.
"""

import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from itertools import count
from statistics import median
from typing import Any

from cluster.forks.position_page import Position, PositionPage
from cluster.processes.process_tree import die_with_parent, set_process_name
from cluster.run.faults import is_echo
from configs.errors import StokerError

__all__ = ["ShellConnection"]


BEAT_S = 0.5
STACKS_SIGNAL = signal.SIGUSR2  # faulthandler writes every thread's stack when it comes
_STEPS_REMEMBERED = 20
_STEPS_WARM = 3  # a median of fewer would be that of the first steps, which compile and allocate


class ShellConnection:
    """The line to this process's shell in Ray. Twice a second a beat says that the process lives and what it does.

    How far its main thread has come stands in `page`. A thread of its own sends the beats: a stopped process is
    silent, a hung one beats without progress. When the shell is gone the process ends at once, as nobody would stop it
    any more.
    """

    def __init__(self, connection: socket.socket, rest: bytes, page: PositionPage) -> None:
        self._connection, self._received, self._page = connection, rest, page
        self._sending = threading.Lock()  # two threads send, and lines must stay whole
        self._facts: dict[str, Any] = {}
        self._position = Position()
        self._master: tuple[str, int] | None = None
        self._met = threading.Event()
        self._step_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._step_started = 0.0
        self.leave: str | None = None
        # Daemons: neither keeps a process alive whose main thread has ended.
        threading.Thread(target=self._listen, name="shell", daemon=True).start()
        threading.Thread(target=self._beat, name="beats", daemon=True).start()

    def report_position(self, phase: str, step: int | None = None) -> None:
        """The main thread has come this far. Cheap: called several times a step."""
        before = self._position
        if step is not None and step != before.step:
            now = time.monotonic()
            if self._step_started and step == before.step + 1:
                self._step_s.append(now - self._step_started)
            self._step_started = now
        self._position = Position(before.progress + 1, before.step if step is None else step, phase)
        self._page.write(self._position)

    def report(self, **facts: Any) -> None:
        """Add `facts` to every beat from now on, such as the attempt's number, and send one at once."""
        self._facts = {**self._facts, **facts}
        with suppress(OSError):  # the listening thread sees that too, and ends the process
            self._send({"fact": facts})

    def meet(self, port: int | None, timeout_s: float) -> tuple[str, int]:
        """Where the ranks meet. Rank 0 gives the port that it listens on. Raises TimeoutError."""
        if port is not None:
            self._send({"listening": port})
        if not self._met.wait(timeout_s):
            raise TimeoutError(f"rank 0 did not open its rendezvous port within {timeout_s:.0f} s")
        assert self._master is not None
        return self._master

    def end(self, message: dict[str, Any]) -> None:
        """The last word: `result` or `error`."""
        self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _beat(self) -> None:
        with suppress(OSError):  # the listening thread sees that too, and ends the process
            for beats in count(1):
                step_s = median(self._step_s) if len(self._step_s) >= _STEPS_WARM else None
                self._send({"beat": {**self._facts, "step_s": step_s, "pid": os.getpid(), "beats": beats}})
                time.sleep(BEAT_S)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                while b"\n" in self._received:
                    line, _, self._received = self._received.partition(b"\n")
                    self._obey(json.loads(line))
                block = self._connection.recv(1 << 16)
                if not block:
                    break
                self._received += block
        os._exit(1)  # the shell is gone; sys.exit would end this thread alone, while the main thread may hang

    def _obey(self, order: dict[str, Any]) -> None:
        if "master" in order:
            host, port = order["master"]
            self._master = (host, port)
            self._met.set()
        if "leave" in order:
            self.leave = order["leave"]


def run_request(connection: socket.socket, request: dict[str, Any], rest: bytes) -> None:
    """Run the request's target in this process, send how it ended to the shell, and end the process.

    `rest`: what came after the request on `connection`. Never returns.
    """
    set_process_name(request["name"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["working_folder"])
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [STACKS_SIGNAL])  # Slurm's signals are blocked in a job
    # From here on the process ends with its shell; before, it ends with the fork server (PR_SET_PDEATHSIG).
    shell = ShellConnection(connection, rest, PositionPage.open(request["page"]))
    module, _, name = request["target"].partition(":")
    code = 0
    try:
        result = getattr(importlib.import_module(module), name)(request["config"], shell)
        shell.end({"result": result})
    except BaseException as error:
        traceback.print_exc()
        code = 1
        shell.end({"error": error_as_dict(error)})
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # No atexit handlers: a fork has those of the server, and DeepSpeed's or NCCL's may wait for dead peers.
        os._exit(code)


def error_as_dict(error: BaseException) -> dict[str, Any]:
    """An error as plain JSON; `own` says that `kind` is a class of configs.errors, which the shell raises again."""
    own = isinstance(error, StokerError)
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "own": own,
        "echo": not own and is_echo(error),
        "trace": traceback.format_exc(),
    }


def main(descriptor: int, parent: int) -> None:
    """A fresh interpreter that the fork server (`parent`) started, with the connection at `descriptor`."""
    die_with_parent(parent)
    request = json.loads(sys.stdin.readline())
    run_request(socket.socket(fileno=descriptor), request, b"")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
