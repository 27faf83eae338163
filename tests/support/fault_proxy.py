"""An HTTP proxy on loopback that passes requests on to a server and spoils some of them."""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

# A status: answered in the server's place. reset: the connection is cut before the request is passed on.
# lost: the request is passed on, and the connection cut in the place of the answer.
Fault = int | Literal["reset", "lost"]


@dataclass
class FaultProxy:
    """`plan(method, path, n)` says what befalls the n-th request (from 0) of that method and path; None: nothing."""

    target: str
    plan: Callable[[str, str, int], Fault | None] = lambda method, path, n: None
    done: list[tuple[str, str, Fault]] = field(default_factory=list)
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "FaultProxy":
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            number = self._seen.get((method, path), 0)
            self._seen[method, path] = number + 1
        fault = self.plan(method, path, number)  # outside the lock: it may send requests of its own
        if fault is not None:
            self.done.append((method, path, fault))
        return fault


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.owner.fault(self.command, self.path)
        if fault == "reset":
            return self._cut()
        if isinstance(fault, int):
            return self._answer(fault, [], b"<Error><Code>Injected</Code></Error>")
        server = http.client.HTTPConnection(urlsplit(self.owner.target).netloc, timeout=60)
        server.request(self.command, self.path, body, dict(self.headers.items()))
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if fault == "lost":
            return self._cut()
        skipped = {"content-length", "transfer-encoding", "connection"}
        headers = [(key, value) for key, value in answer.getheaders() if key.lower() not in skipped]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        return self._answer(answer.status, headers, content, length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815  # http.server's names

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Silence."""
