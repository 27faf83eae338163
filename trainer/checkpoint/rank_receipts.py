"""How the ranks agree on one save: through files in the shared run folder alone, so no collective runs in a thread."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, DamagedCheckpointError
from data.atomic import to_json
from trainer.checkpoint.store_protocol import SaveId

__all__ = ["clean_receipts"]


_RECEIPT_POLL_S = 0.01  # one stat(2) of a shared file system for each rank that is still missing
RECEIPT_TIMEOUT_S = 600.0  # a rank writes its share meanwhile, maybe to a slow disk: as long as a collective may take


class Receipts:
    """Of one save. A receipt names the step and the attempt that it belongs to; any other is refused."""

    def __init__(self, root: Path, save: SaveId) -> None:
        self._folder, self._save = root / f".receipts-{save.name}", save

    def post(self, stage: str, rank: int, content: dict[str, Any]) -> None:
        """`content` has "error" when this rank failed at the stage, and "damaged" when the medium changed its bytes.

        Whole or absent, but not synced: a receipt means nothing after a crash. The rename is the last touch, as rank 0
        may remove the folder as soon as it has seen the file.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        identity = {"attempt": self._save.attempt, "step": self._save.step}
        path = self._path(stage, rank)
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(to_json({**identity, **content}))
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)

    def await_all(self, stage: str, ranks: int, given_up: Callable[[], bool]) -> list[dict[str, Any]]:
        """Every rank's receipt. Raises CheckpointError when a rank failed or does not answer in RECEIPT_TIMEOUT_S.

        A DamagedCheckpointError, where a rank has posted that the medium changed its bytes.
        """
        deadline = time.monotonic() + RECEIPT_TIMEOUT_S
        return [self._await(stage, rank, deadline, given_up) for rank in range(ranks)]

    def _await(self, stage: str, rank: int, deadline: float, given_up: Callable[[], bool]) -> dict[str, Any]:
        path = self._path(stage, rank)
        # One rank after the other: all must come, and the first that is missing is waited for the longest anyway.
        while not path.exists():
            if given_up():
                raise CheckpointError("another rank failed and could not even write why: see the logs")
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"rank {rank} did not answer within {RECEIPT_TIMEOUT_S:.0f} s ({path} is missing)"
                )
            time.sleep(_RECEIPT_POLL_S)
        receipt: dict[str, Any] = json.loads(path.read_bytes())
        if (receipt.pop("attempt"), receipt.pop("step")) != (self._save.attempt, self._save.step):
            raise CheckpointError(f"rank {rank} wrote {path} for another step or attempt")
        if "error" in receipt:
            raise (DamagedCheckpointError if receipt.get("damaged") else CheckpointError)(receipt["error"])
        return receipt

    def _path(self, stage: str, rank: int) -> Path:
        return self._folder / f"{stage}-{rank:05d}.json"

    def discard(self) -> None:
        """On rank 0, when no rank posts any more. Raises nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)  # what cannot be removed now is removed at the next start


def clean_receipts(root: Path) -> None:
    """Remove what crashed saves left; only while no other attempt can be writing."""
    for path in root.glob(".receipts-*"):
        shutil.rmtree(path)
