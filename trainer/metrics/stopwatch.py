"""Where the time of a logging interval goes: each second belongs to one phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


_TRAINING = "training"


class Stopwatch:
    """Adds up named phases since the last reset; what no phase claims is training. An inner phase pauses the outer."""

    def __init__(self) -> None:
        self._phase = _TRAINING
        self.reset()

    def reset(self) -> None:
        """Begin a new interval, with no second in any phase; the phase that is on goes on."""
        self._started = self._switched = time.perf_counter()
        self._phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, time belongs to `name`, whatever ends it."""
        outer = self._phase
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def add(self, name: str, seconds: float) -> None:
        """Of the seconds that were counted as training, these belong to a phase."""
        self._phases[name] += seconds
        self._phases[_TRAINING] -= seconds

    def seconds(self, name: str) -> float:
        """Of a phase since the reset, up to now."""
        self._switch(self._phase)
        return self._phases[name]

    def training_s(self) -> float:
        """Time since the reset that no phase claimed."""
        return self.seconds(_TRAINING)

    def elapsed_s(self) -> float:
        """All time since the reset."""
        return time.perf_counter() - self._started

    def _switch(self, name: str) -> None:
        now = time.perf_counter()
        self._phases[self._phase] += now - self._switched
        self._phase, self._switched = name, now
