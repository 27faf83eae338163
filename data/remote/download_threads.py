"""The threads of a process that download, urgent work first."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class DownloadThreads(Generic[T]):
    """At most `threads` pieces of work at once. The threads are daemons: a stalled server never delays an exit."""

    def __init__(self, threads: int) -> None:
        self._limit = threads
        self._threads = 0
        self._idle = 0
        self._changed = threading.Condition()
        self._urgent: deque[tuple[Future[T], Callable[[], T]]] = deque()
        self._later: deque[tuple[Future[T], Callable[[], T]]] = deque()

    def submit(self, work: Callable[[], T], urgent: bool) -> Future[T]:
        """Do it soon, or when nothing urgent waits."""
        future: Future[T] = Future()
        with self._changed:
            (self._urgent if urgent else self._later).append((future, work))
            if not self._idle and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._serve, name="stoker-download", daemon=True).start()
            self._changed.notify()
        return future

    def make_urgent(self, future: Future[T]) -> None:
        """Somebody waits for it now."""
        with self._changed:
            for waiting in self._later:
                if waiting[0] is future:
                    self._later.remove(waiting)
                    self._urgent.append(waiting)
                    return

    @property
    def waiting(self) -> int:
        """How much work has not begun."""
        return len(self._urgent) + len(self._later)

    def _serve(self) -> None:
        while True:
            future, work = self._next()
            try:
                future.set_result(work())
            except BaseException as error:  # it is raised in the thread that waits
                future.set_exception(error)

    def _next(self) -> tuple[Future[T], Callable[[], T]]:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._urgent or self._later)
            self._idle -= 1
            return (self._urgent or self._later).popleft()
