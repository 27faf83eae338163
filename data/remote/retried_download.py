"""One range, asked for again from the byte reached; a second request races one that is slow."""

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.errors import DataError
from data import draws
from data.remote.http_answers import Range, RequestFailedError
from data.remote.range_request import ConnectionPool, ResponseBody
from data.remote.signed_url import Request
from data.shards.shard import Stat

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 20.0
# A server that trickles never stalls: one request may not take longer than this rate allows.
SLOWEST_BYTES_PER_S = 16 << 10
# A second request for a slow range ("hedging", Dean and Barroso 2013) cuts the waits of the slowest few per cent.
_HEDGE_AFTER = 3.0  # times the median
_HEDGE_FLOOR_S = 0.5
_LEAST_MEASURED = 8
_MEASURED_BYTES = 256 << 10


def pause_s(failures: int, key: draws.Key, least_s: float = 0.0) -> float:
    """Exponential back-off with full jitter (Brooker 2015), keyed; at least what Retry-After asked for."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1))
    share: float = draws.uniforms(1, ("pause", failures, *key)).item()
    return max(least_s, longest * share)


class DownloadSpeed:
    """Seconds per byte of the last ranges, from which follows when a range counts as slow. Threads share it."""

    def __init__(self, hedges: int) -> None:
        self._seconds_per_byte: deque[float] = deque(maxlen=64)
        self._hedges = threading.BoundedSemaphore(hedges)

    def record(self, size: int, seconds: float) -> None:
        """A range of `size` bytes took `seconds`, without a failed try."""
        # Of a few bytes only the latency would be seen.
        if size >= _MEASURED_BYTES:
            self._seconds_per_byte.append(seconds / size)

    def slow_after_s(self, size: int, timeout_s: float) -> float:
        """When a range of `size` bytes deserves a second request; half the time-out while little is known."""
        known = list(self._seconds_per_byte)
        if len(known) < _LEAST_MEASURED:
            return timeout_s / 2
        return max(_HEDGE_FLOOR_S, _HEDGE_AFTER * size * statistics.median(known))

    def start_hedge(self) -> bool:
        """Few at once: when everything is slow, more requests make it slower. `end_hedge` gives the turn back."""
        return self._hedges.acquire(blocking=False)

    def end_hedge(self) -> None:
        """Give back what a `start_hedge` that returned True took."""
        self._hedges.release()


@dataclass(frozen=True)
class DownloadResources:
    """What the downloads of a process share; `tries` is the number of failed requests after which a range is lost."""

    connections: ConnectionPool
    speed: DownloadSpeed
    timeout_s: float
    tries: int


class Download:
    """Fetches bytes of an object.

    The rule of tries: a range is given up after `tries` failed requests. Bytes that came before a failure are kept and
    not asked for again, yet the failure counts; so does that of a racing request, one of which may be under way then.
    """

    def __init__(self, resources: DownloadResources, name: str, request: Callable[[], Request], asked: Range) -> None:
        self.resources = resources
        self.name = name
        self.request = request
        self.asked = asked
        self.changed = threading.Condition()
        self._failures: list[RequestFailedError] = []

    def run(self) -> tuple[bytearray, Stat]:
        """The bytes, fewer than asked where the object ends before. DataError: given up, or refused for good."""
        began = time.monotonic()
        size = self.asked.stop - self.asked.start
        first = _RequestThread(self, self.asked.start)
        threads = [first]
        try:
            first.start()
            self._wait_while_fast(first, self.resources.speed.slow_after_s(size, self.resources.timeout_s))
            racing = not first.ended and self.resources.speed.start_hedge()
            winner = self._race(threads) if racing else self._wait(threads)
        finally:
            # The slower one may wait for a byte that never comes: its connection is shut down under it.
            for thread in threads:
                thread.abort()
        if winner is None:
            raise next(thread.error for thread in threads if thread.error)
        if not self._failures:  # pauses between tries say nothing of the network
            self.resources.speed.record(size, time.monotonic() - began)
        before = winner.start_byte - first.start_byte
        return (first.buffer[:before] + winner.buffer if before else winner.buffer), winner.stat

    def pause_after(self, failure: RequestFailedError) -> float:
        """Seconds until the next try. DataError: it was the last."""
        with self.changed:
            self._failures.append(failure)
            count, last_two = len(self._failures), self._failures[-2:]
        # A server that sent everything twice ignores ranges: asking again would only load it.
        if count >= self.resources.tries or (len(last_two) == 2 and all(failure.whole for failure in last_two)):
            raise DataError(
                f"{self.name}: bytes {self.asked.start}-{self.asked.stop - 1} could not be read in {count} tries, the "
                f"last: {failure}: {failure.remedy}"
            )
        return pause_s(count, (os.getpid(), self.name, self.asked.start), failure.retry_after_s)

    def _race(self, threads: list["_RequestThread"]) -> "_RequestThread | None":
        try:
            second = _RequestThread(self, threads[0].reached)
            threads.append(second)
            second.start()
            return self._wait(threads)
        finally:
            self.resources.speed.end_hedge()

    def _wait_while_fast(self, thread: "_RequestThread", slow_after_s: float) -> None:
        """Until it has ended, or its present request takes too long. Pauses do not count: the server asked for them."""
        with self.changed:
            while not thread.ended:
                left_s = None if thread.asked_at is None else thread.asked_at + slow_after_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return
                self.changed.wait(left_s)

    def _wait(self, threads: list["_RequestThread"]) -> "_RequestThread | None":
        """The one that has all bytes; None: all have failed."""
        with self.changed:
            self.changed.wait_for(lambda: any(r.done for r in threads) or all(r.ended for r in threads))
            return next((thread for thread in threads if thread.done), None)


class _RequestThread:
    """Fetches from a byte on, with tries, in a thread of its own so that it can be left behind."""

    def __init__(self, download: Download, start_byte: int) -> None:
        self.start_byte = start_byte
        self.reached = start_byte
        self.buffer = bytearray(download.asked.stop - start_byte)
        self.stat = Stat(0, "")
        self.done = False
        self.error: BaseException | None = None
        self.asked_at: float | None = None
        self._download = download
        self._body: ResponseBody | None = None
        self._aborted = threading.Event()

    @property
    def ended(self) -> bool:
        """It has all bytes, or has failed."""
        return self.done or self.error is not None

    def start(self) -> None:
        """Begin to ask, in another thread."""
        threading.Thread(target=self._run, name="stoker-range", daemon=True).start()

    def abort(self) -> None:
        """Ask no more; what waits for a byte is woken."""
        self._aborted.set()
        if not self.done and (body := self._body) is not None:
            body.abort()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._fetch()
        except BaseException as caught:  # it is raised in the thread that waits
            error = caught
        with self._download.changed:
            self.error, self.done = error, error is None
            self._download.changed.notify_all()

    def _fetch(self) -> None:
        while not self._aborted.is_set():
            try:
                self._set_asked_at(time.monotonic())
                self._ask()
                return
            except RequestFailedError as failure:
                self._set_asked_at(None)
                if not self._aborted.is_set():
                    self._aborted.wait(self._download.pause_after(failure))
        raise RequestFailedError("another request was faster")

    def _set_asked_at(self, asked_at: float | None) -> None:
        with self._download.changed:
            self.asked_at = asked_at
            self._download.changed.notify_all()

    def _ask(self) -> None:
        download, resources = self._download, self._download.resources
        asked = replace(download.asked, start=self.reached)
        deadline = time.monotonic() + resources.timeout_s + (asked.stop - asked.start) / SLOWEST_BYTES_PER_S
        body = self._body = resources.connections.get(download.name, download.request(), asked, resources.timeout_s)
        try:
            with memoryview(self.buffer) as into:
                while got := body.read_into(into[self.reached - self.start_byte :]):
                    self.reached += got
                    if self._aborted.is_set() or time.monotonic() > deadline:
                        raise RequestFailedError(f"slower than {SLOWEST_BYTES_PER_S >> 10} KiB/s")
        finally:
            body.close()
        # Where the object ends before the range does, the buffer is longer than what came.
        self.stat = body.stat
        del self.buffer[self.reached - self.start_byte :]
