"""Signals that ask the run to stop only set a flag; the run looks at it at a step boundary."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["HANDLED", "StopSignals"]


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Inside a `with` (main thread only), SIGINT, SIGTERM and SIGUSR1 set `requested`.

    A second SIGINT raises KeyboardInterrupt at once, for a user who will not wait for the checkpoint.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in HANDLED:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The first one counts: the reason of a leave does not change while the run is leaving.
        self.requested = self.requested or signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self._interrupts == 2:  # once: a third must not break the cleaning up after the second
            raise KeyboardInterrupt
