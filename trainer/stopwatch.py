"""Where the time of a logging interval goes: each second belongs to one phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up named phases since the last reset; what no phase claims is training."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._started = time.perf_counter()
        self._phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] += time.perf_counter() - started

    def add(self, name: str, seconds: float) -> None:
        self._phases[name] += seconds

    def seconds(self, name: str) -> float:
        return self._phases[name]

    def training_s(self) -> float:
        """Time since the reset that no phase claimed."""
        return time.perf_counter() - self._started - sum(self._phases.values())
