"""The audit file of a rank: which samples each step was trained on, to check the order of the data by."""

import json

from cluster.run.run_folder import RunFolder
from data.loader import StepBatch
from trainer.metrics.full_disk_file import FullDiskFile

__all__ = ["AuditFile"]


class AuditFile:
    """One JSON line a step: `step`, `keys` of this rank's samples, and `left_out` where no update was made of them."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int) -> None:
        self._file = FullDiskFile(folder.audit(attempt, rank))

    def append(self, batch: StepBatch, *, left_out: bool) -> None:
        """Never fails for want of room: what does not fit yet is written later."""
        keys = [key for micro_batch in batch.micro_batches for key in micro_batch.keys]
        line = {"step": batch.step, "keys": keys, **({"left_out": True} if left_out else {})}
        self._file.append((json.dumps(line) + "\n").encode())

    def sync(self) -> None:
        """Make all lines durable. Raises OSError when some have no room yet."""
        self._file.sync()

    def close(self) -> None:
        """Without a `sync`."""
        self._file.close()
