"""A training process, seen from the shell that asked the host's fork server for it."""

import json
import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.forks.position_page import Position, PositionPage
from cluster.forks.stack_dump import dump_stacks

__all__ = ["ForkedWorker", "Message"]


Message = dict[str, Any]


class ForkedWorker:
    """The process runs until it sends a `result` or an `error`, or until `died` says how it ended without one."""

    def __init__(self, connection: socket.socket, request: Message) -> None:
        """`connection`: a new one to a fork server, which forks at the first line. Raises OSError when it is gone."""
        self._connection, self._received, self._closed = connection, b"", False
        self._page = PositionPage.make()
        self.beat: Message = {}
        connection.sendall(json.dumps({**request, "page": self._page.path}).encode() + b"\n")
        connection.setblocking(False)

    def receive(self, timeout_s: float) -> list[Message]:
        """Messages since the last call; waits for one up to `timeout_s`. Beats are kept in `beat` instead."""
        if not self._closed:
            select.select([self._connection], [], [], timeout_s)
            self._read()
        *lines, self._received = self._received.split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self.beat = {**self.beat, **message.get("beat", {}), **message.get("fact", {})}
        news = [message for message in messages if "beat" not in message and "fact" not in message]
        if self._closed and not news:
            news = [{"died": None}]  # the fork server is gone too
        return news

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    block = self._connection.recv(1 << 16)
                except ConnectionResetError:
                    block = b""
                if not block:
                    self._closed = True
                    return
                self._received += block

    def send(self, **message: Any) -> None:
        """An order to the process: `master` or `leave`."""
        with suppress(OSError):  # it has died: `receive` will say so
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    @property
    def position(self) -> Position:
        """How far its main thread has come, up to this moment."""
        return self._page.read()

    @property
    def pid(self) -> int | None:
        """None before its first beat."""
        return self.beat.get("pid")

    def dump_stacks(self, log: Path | None) -> None:
        """Append where its threads are to `log`."""
        if self.pid is not None and log is not None:
            with suppress(OSError):  # it has died meanwhile, or the disk is full
                dump_stacks(self.pid, log)

    def kill(self) -> None:
        """End it at once."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave it: it ends by itself when the connection does, unless it is stopped."""
        self.kill()
        self._connection.close()
        self._page.close()
