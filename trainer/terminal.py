"""What the user sees: messages, a live line on a terminal, plain lines in a pipe."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

__all__ = ["ProgressView", "console", "fail", "say"]


_PLAIN_INTERVAL_S = 10.0

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line of what Stoker is doing."""
    console.print(Text(message))


def fail(message: str) -> None:
    """The error, on stderr."""
    for line in message.splitlines():
        errors.print(Text(f"stoker: {line}", style="red" if errors.is_terminal else ""))


def progress_line(progress: dict[str, Any]) -> str:
    """Phase, step, loss, rate and time left of a progress record."""
    step, steps = progress.get("step", 0), progress["steps"]
    parts = [f"{progress['phase']}: step {step}/{steps}"]
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.4f}")
    if "val_loss" in progress:
        parts.append(f"val loss {progress['val_loss']:.4f}")
    if "tokens_per_s" in progress:
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    elif "samples_per_s" in progress:
        parts.append(f"{progress['samples_per_s']:,.0f} samples/s")
    if "step_s" in progress:
        parts.append(f"ETA {_duration((steps - step) * progress['step_s'])}")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressView:
    """Shows progress records: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True) if sys.stdout.isatty() else None
        self._last_key: Any = None
        self._last_shown = 0.0

    def __enter__(self) -> "ProgressView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, progress: dict[str, Any]) -> None:
        """Replace the live line by the progress of rank 0, as progress.json has it."""
        line = progress_line(progress)
        if self._live:
            self._live.update(Text(line), refresh=True)
            return
        key = (progress["attempt"], progress["phase"])
        now = time.monotonic()
        news = line != self._last_key and now - self._last_shown >= _PLAIN_INTERVAL_S
        if (self._last_key is None or news) and key:
            self._last_key, self._last_shown = line, now
            say(line)
