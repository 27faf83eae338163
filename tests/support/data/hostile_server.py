"""An HTTP server of byte ranges that does one thing wrong now and then: sockets and threads, every draw seeded."""

import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_CHUNK = 64 << 10


@dataclass
class Answer:
    """What goes out; a fault changes it."""

    status: str
    headers: dict[str, str]
    body: bytearray
    sent_bytes: int | None = None  # then the connection ends
    reset: bool = False
    stall_s: float = 0.0  # before the last sent byte


Fault = Callable[[Answer, random.Random], None]


def reset(answer: Answer, draw: random.Random) -> None:
    answer.sent_bytes, answer.reset = draw.randrange(len(answer.body) + 1), True


def short_body(answer: Answer, draw: random.Random) -> None:
    answer.sent_bytes = draw.randrange(len(answer.body) + 1)


def stall(answer: Answer, draw: random.Random) -> None:
    answer.sent_bytes, answer.stall_s = draw.randrange(len(answer.body) + 1), 3.0


def busy(answer: Answer, draw: random.Random) -> None:
    refuse(answer, draw.choice(["503 Service Unavailable", "500 Internal Server Error", "429 Too Many Requests"]))


def busy_with_date(answer: Answer, draw: random.Random) -> None:
    refuse(answer, "503 Service Unavailable")
    answer.headers["Retry-After"] = draw.choice(["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"])


def wrong_length(answer: Answer, draw: random.Random) -> None:
    answer.headers["Content-Length"] = str(max(0, len(answer.body) + draw.choice([-1000, -1, 1, 1000])))


def wrong_range(answer: Answer, draw: random.Random) -> None:
    start, stop, size = map(int, re.findall(r"\d+", answer.headers["Content-Range"]))
    moved = draw.choice([-1, 1, 4096])
    answer.headers["Content-Range"] = f"bytes {start + moved}-{stop + moved}/{size}"


def no_range(answer: Answer, _draw: random.Random) -> None:
    del answer.headers["Content-Range"]


def whole_body(answer: Answer, _draw: random.Random) -> None:
    answer.status = "200 OK"
    del answer.headers["Content-Range"]


def flipped_bit(answer: Answer, draw: random.Random) -> None:
    answer.body[draw.randrange(len(answer.body))] ^= 1 << draw.randrange(8)


def changed_etag(answer: Answer, _draw: random.Random) -> None:
    answer.headers["ETag"] = '"another"'


def refuse(answer: Answer, status: str) -> None:
    answer.status, answer.body, answer.headers = status, bytearray(), {"Content-Length": "0"}


PASSING = (reset, short_body, stall, busy, busy_with_date, wrong_length, wrong_range, no_range, flipped_bit)


@dataclass
class HostileServer:
    """Serves `objects` by path, over TLS where a context is given. A share of the ranges suffers one of `faults`."""

    objects: dict[str, bytes]
    faults: tuple[Fault, ...] = ()
    share: float = 0.0
    seed: int = 0
    tls: ssl.SSLContext | None = None
    requests: Counter[str] = field(default_factory=Counter)
    suffered: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}/{path}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        wrap = self.tls.wrap_socket if self.tls else None
        with suppress(OSError), accepted, wrap(accepted, server_side=True) if wrap else accepted as connection:
            with self._lock:
                self._open.add(connection)
            while head := _head(connection):
                self._answer(connection, head)
        with self._lock:
            self._open = {one for one in self._open if one.fileno() >= 0}

    def _answer(self, connection: socket.socket, head: str) -> None:
        path = head.split(" ", 2)[1].lstrip("/").partition("?")[0]
        with self._lock:
            self.requests[path] += 1
        span = _RANGE.search(head)
        if path not in self.objects or span is None:
            status = "404 Not Found" if path not in self.objects else "400 Bad Request"
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        contents, start = self.objects[path], int(span[1])
        stop = min(int(span[2]) + 1, len(contents))
        with self._lock:
            self.ranges.append((start, stop))
        self._send(connection, self._spoilt(_range_answer(contents, start, stop)))

    def _spoilt(self, answer: Answer) -> Answer:
        with self._lock:
            if not self.faults or not answer.body or self._draw.random() >= self.share:
                return answer
            drawn, own_draw = self._draw.choice(self.faults), random.Random(self._draw.random())
            # Each comes once before any comes as drawn: the order of requests is not the same in every run.
            fault = next((each for each in self.faults if each.__name__ not in self.suffered), drawn)
            self.suffered[fault.__name__] += 1
        fault(answer, own_draw)
        return answer

    def _send(self, connection: socket.socket, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in answer.headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        connection.sendall(answer.body[: answer.sent_bytes])
        if answer.sent_bytes is None:
            return
        time.sleep(answer.stall_s)
        if answer.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raise OSError("the connection ends here")


def _head(connection: socket.socket) -> str:
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return ""
        received += more
    return received.decode("latin-1")


def _range_answer(contents: bytes, start: int, stop: int) -> Answer:
    if start >= len(contents):
        headers = {"Content-Range": f"bytes */{len(contents)}", "Content-Length": "0", "ETag": '"first"'}
        return Answer("416 Range Not Satisfiable", headers, bytearray())
    body = bytearray(contents[start:stop])
    headers = {
        "Content-Range": f"bytes {start}-{stop - 1}/{len(contents)}",
        "Content-Length": str(len(body)),
        "ETag": '"first"',
    }
    return Answer("206 Partial Content", headers, body)
