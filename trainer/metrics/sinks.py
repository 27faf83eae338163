"""Where a run's figures go: metrics.jsonl (the committed history) and the live progress file."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cluster.run.ledger import read_json_lines, strict_json
from cluster.run.run_folder import RunFolder
from data.atomic import write_durably
from trainer.metrics.full_disk_file import FullDiskFile

__all__ = ["JsonLines", "MetricSink", "Progress"]


_PROGRESS_INTERVAL_S = 0.4

# metrics.jsonl key -> TensorBoard tag
TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "loss_scale": "train/loss_scale",
    "left_out_steps": "train/left_out_steps",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "val_perplexity": "val/perplexity",
    "samples_per_s": "speed/samples_per_s",
    "tokens_per_s": "speed/tokens_per_s",
    "step_s": "speed/step_s",
    "mfu": "speed/mfu",
    "data_wait_s": "time/data_wait_s",
    "checkpoint_s": "time/checkpoint_s",
    "validation_s": "time/validation_s",
    "slowest_rank_ratio": "speed/slowest_rank_ratio",
    "goodput": "goodput/fraction",
    "worker_goodput": "goodput/worker_fraction",
    "skipped": "data/skipped_samples",
    "val_skipped": "data/val_skipped_samples",
    "host_bytes": "memory/host_bytes",
    "device_bytes": "memory/device_bytes",
}


class MetricSink(Protocol):
    """One destination of logged steps."""

    def log(self, line: Mapping[str, Any]) -> None:
        """One logged step, with `step` in it."""

    def text(self, step: int, text: str) -> None:
        """A sample that the task shows."""

    def flush(self) -> None:
        """Make what was logged durable: called before each checkpoint, which must not be ahead of its history."""

    def close(self) -> None:
        """Nothing is logged after it."""


class JsonLines:
    """metrics.jsonl: each step of the committed history once, floats at full precision."""

    def __init__(self, folder: RunFolder, attempt: int, resumed_step: int) -> None:
        _put_lost_lines_aside(folder.metrics, folder.superseded(attempt), resumed_step)
        self._file = FullDiskFile(folder.metrics)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append the line; without room it waits in memory."""
        self._file.append(_encode([dict(line)]))

    def text(self, step: int, text: str) -> None:
        """Samples are no metrics: TensorBoard and the ledger show them."""

    def flush(self) -> None:
        """Raises OSError when some lines have no room yet."""
        self._file.sync()

    def close(self) -> None:
        """Without a `flush`."""
        self._file.close()


def _put_lost_lines_aside(path: Path, aside: Path, resumed_step: int) -> None:
    """Steps after the checkpoint that is resumed from will be trained again: their lines are superseded."""
    lines = read_json_lines(path)
    lost = [line for line in lines if line["step"] > resumed_step]
    kept = [line for line in lines if line["step"] <= resumed_step]
    if lost:
        write_durably(aside, _encode(lost))
    if path.exists():
        write_durably(path, _encode(kept))  # also drops a line torn by a crash


def _encode(lines: list[dict[str, Any]]) -> bytes:
    return "".join(strict_json(line) + "\n" for line in lines).encode()


class Progress:
    """progress.json: what rank 0 is doing now, for the terminal and `stoker status`; at most about twice a second."""

    def __init__(self, folder: RunFolder, attempt: int, steps: int) -> None:
        self._path = folder.progress
        self._fields: dict[str, Any] = {"attempt": attempt, "steps": steps}
        self._written = 0.0

    def update(self, phase: str, **fields: Any) -> None:
        """A change of phase is written at once."""
        changed = phase != self._fields.get("phase")
        self._fields |= {"phase": phase, **fields}
        now = time.time()
        if changed or now - self._written > _PROGRESS_INTERVAL_S:
            self._written = now
            temporary = self._path.with_name(".progress.json")
            # Not fsynced: it tells of this moment, and means nothing after a crash.
            with contextlib.suppress(OSError):  # a full disk is told of by what matters, not by this
                temporary.write_text(strict_json({**self._fields, "time": now}))
                temporary.replace(self._path)
