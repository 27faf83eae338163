"""Saving: a copy to host memory at the step boundary, then write, publish and read back, in the background if asked."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import CheckpointError, DamagedCheckpointError, SupersededError
from configs.recipe import Checkpoint
from trainer.checkpoint.commit import Commit, RankShare
from trainer.checkpoint.manifest import Manifest, StoredFile
from trainer.checkpoint.rank_receipts import Receipts, clean_receipts
from trainer.checkpoint.reader import verify
from trainer.checkpoint.retention import steps_to_remove
from trainer.checkpoint.snapshot import HostBuffer, take_snapshot
from trainer.checkpoint.store_protocol import CheckpointStore, SaveId, StoredBytes, read_manifest
from trainer.engine.engine_protocol import Engine
from trainer.rank.ranks import Ranks

__all__ = ["CheckpointStall", "CheckpointWriter", "SaveStart"]


@dataclass(frozen=True)
class SaveStart:
    """The moment at which a save took the loop from training.

    `spent_s`: seconds by phase since the newest logged line. The next line holds them too, but a run that breaks
    before it would leave no trace of them.
    """

    saved_at: float  # as time.time()
    spent_s: Mapping[str, float]

    @classmethod
    def now(cls, spent_s: Mapping[str, float]) -> "SaveStart":
        """The save begins with this call."""
        return cls(time.time(), spent_s)


@dataclass(frozen=True)
class CheckpointStall:
    """What a save kept the training loop from: waiting for the save before, and copying."""

    start: SaveStart
    wait_s: float
    copy_s: float


class CheckpointWriter:
    """One checkpoint in flight, in one buffer that every save uses again.

    A checkpoint that fails costs no training: its error waits in `problem`, on rank 0 always, and on the rank where it
    happened.
    """

    def __init__(
        self,
        store: CheckpointStore,
        receipts_root: Path,
        ranks: Ranks,
        settings: Checkpoint,
        *,
        superseded: Callable[[], bool],
        published: Callable[[Manifest, CheckpointStall, float], None],
        warn: Callable[[str], None],
    ) -> None:
        """`superseded`: whether a newer attempt has begun, after which this one publishes nothing.

        `published` is called on rank 0, in the thread of the save, with the manifest, what the save kept the loop
        from, and the seconds that it took.
        """
        self._store, self._receipts_root, self._ranks, self._settings = store, receipts_root, ranks, settings
        self._superseded, self._published, self._warn = superseded, published, warn
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._failed_in_a_row, self._cause = 0, ""
        self._is_superseded = False
        self._given_up = threading.Event()
        self._buffer: HostBuffer | None = None
        self._figures: dict[int, dict[str, float]] = {}
        self._saves = 0  # the same on every rank, so that no save reads the receipts of another

    @property
    def busy(self) -> bool:
        """Whether a save is still being written, on this rank: another rank may have handed its part over already."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the newest save is known to have failed, here."""
        return self._error is not None

    @property
    def hopeless(self) -> str | None:
        """On rank 0: why training further is not worth it, if so."""
        if self._is_superseded:
            return self._cause
        if self._failed_in_a_row < self._settings.max_failed_saves:
            return None
        return (
            f"{self._failed_in_a_row} checkpoints in a row failed (checkpoint.max_failed_saves), and a crash would "
            f"lose all since the newest whole one: {self._cause}"
        )

    def save(self, engine: Engine, header: Manifest, start: SaveStart | None = None) -> CheckpointError | None:
        """Wait for the save before, copy the state, and write it: in the background if the recipe says so.

        `start`: when the caller began, if it did anything before this call. Returns the error of the save before.
        """
        start = start or SaveStart.now({})
        started = time.monotonic()
        error = self.wait()  # one buffer: the save before must be written before its memory is filled again
        waited = time.monotonic()
        self._saves += 1
        # A new one for each save: what was given up for the save before says nothing of this one.
        self._given_up = threading.Event()
        self._buffer = self._buffer or HostBuffer(engine.device)
        share = take_snapshot(engine, header, self._ranks, self._buffer)
        stall = CheckpointStall(start, wait_s=waited - started, copy_s=time.monotonic() - waited)
        # A daemon, so that a failed run is not kept from ending by a rank that will never hand its share over.
        arguments = (share, stall, self._given_up)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()
        if not self._settings.background:
            self._join()
        return error

    def wait(self) -> CheckpointError | None:
        """Until the checkpoint in flight is published (rank 0) or handed over (other ranks), or has failed."""
        self._join()
        return self.problem()

    def problem(self) -> CheckpointError | None:
        """The error of a failed save, once."""
        error, self._error = self._error, None
        return error

    def give_up(self) -> None:
        """A rank failed: do not wait for its share any longer."""
        self._given_up.set()

    def clean(self) -> None:
        """Remove what failed saves left; only while no rank is writing."""
        self._store.clean()
        clean_receipts(self._receipts_root)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, share: RankShare, stall: CheckpointStall, given_up: threading.Event) -> None:
        started = time.monotonic()
        save = SaveId(share.header.attempt, self._saves, share.header.step)
        receipts = Receipts(self._receipts_root, save)
        rank, ranks = self._ranks.rank, self._ranks.world
        published = False
        commit = Commit(
            self._store,
            receipts,
            save,
            rank=rank,
            ranks=ranks,
            given_up=given_up.is_set,
            superseded=self._superseded,
            verify=verify,
        )
        try:
            stored, file = commit.store_share(share)
            if self._ranks.leads:
                manifest = commit.publish(share.header)
                published = True
                if not commit.kept:
                    self._published(manifest, stall, time.monotonic() - started)
                self._confirm(commit, stored, file, save.step)
                self._failed_in_a_row = 0
            else:
                # Without waiting for `publish`: the file is open, and its bytes do not change by a rename.
                commit.read_back(stored, file)
        except Exception as error:  # whatever it is, the training thread decides what to do about it
            if self._ranks.leads and not published:
                with contextlib.suppress(OSError):  # what cannot be removed now is removed at the next start
                    commit.discard()
            outcome = " is doubtful" if published else " was not written"
            self._cause = (
                f"the checkpoint of step {save.step}{outcome} ({error}); those before it are kept: "
                f"see that {self._store.where} can be written and has free space"
            )
            self._failed_in_a_row += 1
            self._is_superseded = isinstance(error, SupersededError)
            self._error = CheckpointError(self._cause)

    def _confirm(self, commit: Commit, stored: StoredFile, file: StoredBytes, step: int) -> None:
        """The new checkpoint reads as it was written: only now may an older one go.

        One that is not known to be whole stays: the next start checks it.
        """
        try:
            commit.read_back(stored, file)
            commit.await_read_back()
        except (DamagedCheckpointError, EOFError, FileNotFoundError) as error:
            commit.check_current()
            if not commit.kept:  # of which these bytes are no part
                raise CheckpointError(f"{error}; put aside as {self._store.put_aside(step)}") from error
        commit.check_current()
        # Later ones are a superseded attempt's: they neither go nor make others go.
        steps = [found for found in self._store.steps() if found <= step]
        # Last of all, when the new one is known to be whole: at no moment is there none that a restart could use.
        for old in steps_to_remove(steps, self._validations(steps), self._settings):
            try:
                self._store.remove(old)
            except OSError as error:
                self._warn(f"the old checkpoint of step {old} cannot be removed ({error}): remove it by hand")

    def _validations(self, steps: list[int]) -> dict[int, dict[str, float]]:
        if self._settings.keep_best is None:
            return {}
        for step in steps:
            if step not in self._figures:
                self._figures[step] = self._figures_of(step)
        return self._figures

    def _figures_of(self, step: int) -> dict[str, float]:
        try:
            return read_manifest(self._store.at(step)).metrics
        except CheckpointError as error:
            self._warn(f"the checkpoint of step {step} cannot be compared with others: {error}")
            return {}
