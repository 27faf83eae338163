"""One GET of one byte range, its bytes as they come."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from configs.errors import DataError
from data.remote.http_answers import Range, RequestFailedError, check_answer, only_if_unchanged
from data.remote.signed_url import Request
from data.shards.shard import Stat

_READ_BYTES = 256 << 10
_REFUSAL_BYTES = 2048
# Only redirects are followed here: every other try is `download`'s.
_REDIRECTS = urllib3.Retry(total=3, connect=0, read=0, status=0, other=0, redirect=3, raise_on_redirect=False)


class ConnectionPool:
    """Connections kept open, for any number of threads."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._managers: dict[str | None, urllib3.PoolManager] = {}

    def get(self, name: str, request: Request, asked: Range, timeout_s: float) -> "ResponseBody":
        """Ask for a range; `timeout_s` is the longest wait for any one byte.

        RequestFailedError: worth another try. DataError: refused for good.
        """
        span = {"Range": f"bytes={asked.start}-{asked.stop - 1}", "Accept-Encoding": "identity"}
        try:
            response = self._manager(request.url).request(
                "GET",
                request.url,
                headers={**request.headers, **span, **only_if_unchanged(asked)},
                preload_content=False,
                decode_content=False,
                retries=_REDIRECTS,
                timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            )
        except (HTTPError, OSError) as error:
            raise _as_failure(error, timeout_s) from None
        try:
            return ResponseBody(response, _stat(name, request, response, asked), asked, timeout_s)
        except BaseException:
            # A connection whose answer was not read to its end cannot be used for another.
            response.close()
            raise

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = _proxy(url)
        with self._lock:
            if proxy not in self._managers:
                # Proxies and servers alike: no more connections are kept than are used at once.
                sizes = {"num_pools": 64, "maxsize": self._keep}
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, **sizes) if proxy else urllib3.PoolManager(**sizes)  # type: ignore[arg-type]
                )
            return self._managers[proxy]


class ResponseBody:
    """The bytes of a range. RequestFailedError: none came in time, or they ended early."""

    def __init__(self, response: urllib3.BaseHTTPResponse, stat: Stat, asked: Range, timeout_s: float) -> None:
        self.stat = stat
        self._response = response
        self._bytes_left = min(asked.stop, stat.size) - asked.start
        self._timeout_s = timeout_s

    def read_into(self, into: memoryview) -> int:
        """As many bytes as have come; 0 at the end."""
        if not self._bytes_left:
            return 0
        try:
            chunk = self._response.read1(min(_READ_BYTES, self._bytes_left))
        except (HTTPError, OSError, ValueError) as error:
            raise _as_failure(error, self._timeout_s) from None
        if not chunk:
            raise RequestFailedError("the body ended early")
        into[: len(chunk)] = chunk
        self._bytes_left -= len(chunk)
        return len(chunk)

    def abort(self) -> None:
        """Give the rest up, from any thread: a read that waits for it ends."""
        # It may have ended, or be closed, at this very moment.
        with suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Keep the connection for the next request if every byte was read."""
        if self._bytes_left == 0 and self._response.length_remaining == 0:
            self._response.release_conn()
        else:
            self._response.close()


def _stat(name: str, request: Request, response: urllib3.BaseHTTPResponse, asked: Range) -> Stat:
    if request.protected and (response.geturl() or "").startswith("http://"):
        raise DataError(f"{name}: redirected from https to http: correct the address")
    body = b""
    if response.status >= 300:
        try:
            body = response.read(_REFUSAL_BYTES)
        except (HTTPError, OSError) as error:
            raise RequestFailedError(f"HTTP {response.status}, then {type(error).__name__}") from None
    return check_answer(name, response.status, response.headers, body, asked)


def _as_failure(error: Exception, timeout_s: float) -> RequestFailedError:
    """Without the errors' own texts, which may show a signed URL."""
    causes = list(_causes(error))
    if any(isinstance(cause, NameResolutionError) for cause in causes):
        return RequestFailedError("unknown host", remedy="correct the address, or check the network")
    if any(_is_late(cause) for cause in causes):
        return RequestFailedError(f"no byte for {timeout_s:g} s")
    if any(isinstance(cause, IncompleteRead) for cause in causes):
        return RequestFailedError("the body ended early")
    reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    return RequestFailedError(f"the connection failed ({reason or type(causes[-1]).__name__})")


def _is_late(error: BaseException) -> bool:
    # urllib3 counts refused connections among those that took too long.
    late = TimeoutError | ReadTimeoutError | ConnectTimeoutError
    return isinstance(error, late) and not isinstance(error, NewConnectionError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was made of: urllib3 keeps them as reasons and arguments."""
    yield error
    for inner in (getattr(error, "reason", None), *error.args, error.__cause__):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _causes(inner)


def _proxy(url: str) -> str | None:
    """As HTTP_PROXY, HTTPS_PROXY and NO_PROXY have it."""
    parsed = urllib3.util.parse_url(url)
    if proxy_bypass(parsed.netloc or ""):
        return None
    return getproxies().get(parsed.scheme or "")
