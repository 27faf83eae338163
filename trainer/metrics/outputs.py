"""Where one rank's figures go: on rank 0 the sinks and progress.json, on every rank the audit file if asked for."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from cluster.run.run_events import Warned
from data.loader import StepBatch
from trainer.engine.hardware import memory_bytes
from trainer.history.goodput import LiveAccount
from trainer.history.wall_time_spans import PHASES
from trainer.metrics.audit import AuditFile
from trainer.metrics.sinks import MetricSink, Progress
from trainer.rank.context import Context

__all__ = ["Outputs"]


_PROGRESS_KEYS = ("loss", "lr", "step_s", "samples_per_s", "tokens_per_s", "val_loss")


class Outputs:
    """Rank 0's add to a line what it alone knows, and write it; those of other ranks write the audit file only."""

    def __init__(
        self,
        context: Context,
        device: torch.device,
        progress: Progress,
        sinks: Sequence[MetricSink],
        account: LiveAccount | None,
        audit: AuditFile | None,
    ) -> None:
        """`account` is rank 0's, and None elsewhere; `sinks` are empty elsewhere."""
        self._context, self._device = context, device
        self._progress, self._sinks, self._account, self._audit = progress, sinks, account, audit

    def phase(self, name: str, step: int) -> None:
        """For the terminal and `stoker status`."""
        if self._context.ranks.leads:
            self._progress.update(name, step=step)

    def log(self, line: dict[str, Any]) -> None:
        """Adds memory, attempt, time and goodput to the line and hands it on; nothing but on rank 0."""
        if self._account is None:
            return
        line |= {**memory_bytes(self._device), "attempt": self._context.attempt, "time": time.time()}
        self._account.add({name: line[f"{name}_s"] for name in PHASES}, line["time"])
        line |= self._account.figures()
        for sink in self._sinks:
            sink.log(line)
        figures = {key: line[key] for key in _PROGRESS_KEYS if key in line}
        self._progress.update("training", step=line["step"], **figures)

    def text(self, step: int, text: str) -> None:
        """What a validation shows of the model."""
        for sink in self._sinks:
            sink.text(step, text)

    def audit(self, batch: StepBatch, *, left_out: bool) -> None:
        """One step's samples, where `monitor.audit_samples` asks for them."""
        if self._audit is not None:
            self._audit.append(batch, left_out=left_out)

    def flush(self) -> None:
        """Make all that was written durable. Raises OSError when some of it has no room yet."""
        for sink in self._sinks:
            sink.flush()
        if self._audit is not None:
            self._audit.sync()

    def close(self) -> None:
        """A last `flush`, then close the files; what cannot be written is told in the ledger."""
        try:
            self.flush()
        except OSError as error:  # told, but not in the place of what ended the run
            self._context.record(Warned(message=f"the last figures were not written: {error}"))
        for sink in self._sinks:
            sink.close()
        if self._audit is not None:
            self._audit.close()
