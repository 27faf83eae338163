"""Seconds per named span of the main thread, each second counted once: in the innermost span."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Profile:
    """`seconds` adds up from the last `reset` on."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew; spans that are open must not end after it."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner_s = [0.0]

    @contextmanager
    def span(self, label: str) -> Iterator[None]:
        """Add the time inside to `label`, less that of spans within it."""
        self._inner_s.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[label] += spent - self._inner_s.pop()
            self._inner_s[-1] += spent

    def time_calls(self, owner: type, method: str, label: str) -> None:
        """From now on, calls of `owner.method` are spans."""
        original: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(original)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span(label):
                return original(*arguments, **options)

        setattr(owner, method, timed)
