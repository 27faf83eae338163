"""A rank's own share of a step: the time it was not waiting for the others inside a collective.

In a step all ranks take equally long, because they wait for the slowest; only their own shares show which one that is.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "inference_all_reduce", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_coalesced"),
    *("all_to_all", "all_to_all_single", "barrier"),
)


class CollectiveWait:
    """Measures steps on the host's clock, which is right where collectives block: on the CPU."""

    def __init__(self) -> None:
        self._began = self._waited_s = 0.0
        self._waiting = False

    def start(self) -> None:
        """A step begins."""
        self._began, self._waited_s = time.perf_counter(), 0.0

    def own_s(self) -> float:
        """Seconds since `start`, less those inside collectives: this rank's own work."""
        return time.perf_counter() - self._began - self._waited_s

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective; one inside another counts once."""
        if self._waiting:  # all_reduce_coalesced calls all_reduce
            yield
            return
        self._waiting, began = True, time.perf_counter()
        try:
            yield
        finally:
            self._waiting = False
            self._waited_s += time.perf_counter() - began

    def measure(self, backend: Any) -> None:
        """Time the collectives that go through `backend`, a communication object of DeepSpeed or of that form.

        Another CollectiveWait that measures the same backend later takes the place of this one.
        """
        for name in _COLLECTIVES:
            method = getattr(type(backend), name, None)
            if method is not None:
                # The class's method, not what the instance may have from an engine before: they would add up.
                setattr(backend, name, self._timed(method.__get__(backend)))

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.waiting():
                work = collective(*arguments, **options)
            # An asynchronous collective returns at once: the waiting is in the handle's `wait`.
            return _TimedWork(work, self) if hasattr(work, "wait") else work

        return timed


class _TimedWork:
    """The handle of a collective under way."""

    def __init__(self, work: Any, collective_wait: CollectiveWait) -> None:
        self._work, self._collective_wait = work, collective_wait

    def wait(self, *arguments: Any, **options: Any) -> Any:
        with self._collective_wait.waiting():
            return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
