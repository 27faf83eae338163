"""An HTTP server of byte ranges whose every connection is limited, as an object store's are.

    python -m benchmarks.data.rate_limited_server FOLDER --mb-per-s 60 [--first-byte-ms 0] [--port 0]

prints its port, then serves the files of FOLDER until it is killed. MB are 10^6 bytes.
"""

import argparse
import http.server
import os
import re
import socket
import time
from pathlib import Path

_CHUNK = 128 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of whole files and of single ranges."""

    protocol_version = "HTTP/1.1"
    folder: Path
    bytes_per_s: float
    first_byte_s: float

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel must not take much more than the limit lets through.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        try:
            descriptor = os.open(self.folder / self.path.lstrip("/").partition("?")[0], os.O_RDONLY)
        except OSError:
            self.send_error(404)
            return
        try:
            status = os.fstat(descriptor)
            size, asked = status.st_size, _RANGE.fullmatch(self.headers.get("Range", ""))
            start, stop = (int(asked[1]), min(int(asked[2] or size - 1) + 1, size)) if asked else (0, size)
            time.sleep(self.first_byte_s)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{size:x}"')
            self.end_headers()
            if body:
                self._send(descriptor, start, stop)
        finally:
            os.close(descriptor)

    def _send(self, descriptor: int, start: int, stop: int) -> None:
        began, at = time.monotonic(), start
        while at < stop:
            at += os.sendfile(self.connection.fileno(), descriptor, at, min(_CHUNK, stop - at))
            ahead_s = (at - start) / self.bytes_per_s - (time.monotonic() - began)
            if ahead_s > 0:
                time.sleep(ahead_s)

    def log_message(self, format: str, *args: object) -> None:
        pass


class RangeServer(http.server.ThreadingHTTPServer):
    """A thread per connection, which does not outlive the process; many may connect at once."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Parse the command line, print the port, serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb-per-s", type=float, default=60.0)
    parser.add_argument("--first-byte-ms", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    RangeHandler.folder = arguments.folder
    RangeHandler.bytes_per_s = arguments.mb_per_s * 1e6
    RangeHandler.first_byte_s = arguments.first_byte_ms / 1e3
    server = RangeServer(("127.0.0.1", arguments.port), RangeHandler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
