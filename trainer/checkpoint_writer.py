"""Saving: a copy to host memory at the step boundary, then write and publish, in the background if asked.

Each rank writes its own file and a receipt into a staging folder; rank 0 waits for every receipt, writes the manifest
last and renames the folder. The ranks agree through the shared file system alone, so no collective runs in a thread.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from configs.errors import CheckpointError
from configs.recipe import Checkpoint
from data.atomic import sync_folder
from trainer.checkpoint_format import MANIFEST, Manifest, StoredFile, StoredFragment, check_coverage, file_sha256
from trainer.durable import to_json, write_durably
from trainer.engine import Engine
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder

_RECEIPT_POLL_S = 0.02
_PARTS_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, copied to host memory."""

    header: Manifest  # complete but for files and fragments
    tensors: dict[str, torch.Tensor]
    fragments: list[StoredFragment]
    buffers: dict[str, str]


def take_snapshot(engine: Engine, header: Manifest, ranks: Ranks) -> Snapshot:
    """Copy this rank's state; training may go on as soon as this returns."""
    file = f"rank-{ranks.rank:05d}-of-{ranks.world:05d}.safetensors"
    tensors, fragments = {}, []
    for fragment in engine.fragments():
        key = f"{fragment.kind}/{fragment.parameter}/{fragment.start}"
        tensors[key] = _host_copy(fragment.tensor)
        count = fragment.tensor.numel()
        fragments.append(StoredFragment(fragment.parameter, fragment.kind, fragment.start, count, file, key))
    buffers = engine.buffers() if ranks.leads else {}
    tensors |= {f"buffer/{name}": _host_copy(value) for name, value in buffers.items()}
    return Snapshot(header, tensors, fragments, dict.fromkeys(buffers, file))


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    # A real copy on CPU too: the next step changes the live memory while the copy is written.
    return tensor.detach().to("cpu", copy=True).contiguous()


class CheckpointWriter:
    """One checkpoint in flight; the next save waits for it.

    A checkpoint that fails costs no training: its error is handed back by the next `save` or `wait`, on rank 0 always,
    and on the rank where it happened.
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        settings: Checkpoint,
        published: Callable[[int, float], None],
        warn: Callable[[str], None],
    ) -> None:
        self._folder, self._ranks, self._settings = folder, ranks, settings
        self._published, self._warn = published, warn
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._saves = 0  # the same on every rank, so that no save reads the receipts of another

    def save(self, snapshot: Snapshot) -> CheckpointError | None:
        """Write the snapshot, in the background if the recipe says so; returns the error of the one before."""
        error = self.wait()
        self._saves += 1
        # A daemon, so that a failed run is not kept from ending by a rank that will never hand its part over.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()
        if self._settings.background:
            return error
        return self.wait() or error

    def wait(self) -> CheckpointError | None:
        """Until the checkpoint in flight is published (rank 0) or handed over (other ranks), or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _write(self, snapshot: Snapshot) -> None:
        started = time.monotonic()
        step = snapshot.header.step
        staging = self._folder.checkpoints / f".staging-{snapshot.header.attempt}-{self._saves}"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            self._write_own_part(staging, snapshot)
            if self._ranks.leads:
                self._publish(staging, snapshot)
                self._published(step, time.monotonic() - started)
                self._prune()
        except Exception as error:  # whatever it is, the training thread decides what to do about it
            self._error = CheckpointError(
                f"the checkpoint of step {step} was not written ({error}); the one before it is kept: "
                f"see that {self._folder.checkpoints} can be written and has free space"
            )
            if self._ranks.leads:
                # A full disk needs the room now. What cannot be removed is removed at the next start.
                shutil.rmtree(staging, ignore_errors=True)

    def _write_own_part(self, staging: Path, snapshot: Snapshot) -> None:
        name = f"rank-{self._ranks.rank:05d}-of-{self._ranks.world:05d}.safetensors"
        path = staging / name
        try:
            save_file(snapshot.tensors, path)
            path.chmod(0o644)  # safetensors makes it private, unlike every other file of the run
            with path.open("rb") as file:
                os.fsync(file.fileno())
            stored = StoredFile(name, path.stat().st_size, file_sha256(path))
            receipt: dict[str, Any] = {"file": asdict(stored), "fragments": [asdict(f) for f in snapshot.fragments]}
        except Exception as error:
            path.unlink(missing_ok=True)  # or a full disk has no room for the receipt either, and rank 0 waits
            receipt = {"error": f"rank {self._ranks.rank} could not write {path}: {error}"}
            write_durably(_receipt(staging, self._ranks.rank), to_json(receipt))
            raise
        write_durably(_receipt(staging, self._ranks.rank), to_json(receipt))

    def _publish(self, staging: Path, snapshot: Snapshot) -> None:
        receipts = [self._await_receipt(staging, rank) for rank in range(self._ranks.world)]
        manifest = replace(
            snapshot.header,
            files=[StoredFile(**receipt["file"]) for receipt in receipts],
            fragments=[StoredFragment(**entry) for receipt in receipts for entry in receipt["fragments"]],
            buffers=snapshot.buffers,
        )
        check_coverage(manifest)
        for rank in range(self._ranks.world):
            _receipt(staging, rank).unlink()
        write_durably(staging / MANIFEST, manifest.encode())
        target = self._folder.checkpoint(manifest.step)
        if target.exists():  # published by a first try of which another rank knew only its own error
            shutil.rmtree(staging)
            return
        staging.rename(target)
        sync_folder(target.parent)

    def _await_receipt(self, staging: Path, rank: int) -> dict[str, Any]:
        deadline = time.monotonic() + _PARTS_TIMEOUT_S
        path = _receipt(staging, rank)
        while not path.exists():
            if time.monotonic() > deadline:
                raise CheckpointError(f"rank {rank} did not finish its part of {staging} in {_PARTS_TIMEOUT_S:.0f} s")
            time.sleep(_RECEIPT_POLL_S)
        receipt: dict[str, Any] = json.loads(path.read_bytes())
        if "error" in receipt:
            raise CheckpointError(receipt["error"])
        return receipt

    def _prune(self) -> None:
        for step in self._folder.published_steps()[: -self._settings.keep_last]:
            try:
                remove_checkpoint(self._folder.checkpoint(step))
            except OSError as error:
                self._warn(f"the old checkpoint of step {step} cannot be removed ({error}): remove it by hand")


def _receipt(staging: Path, rank: int) -> Path:
    return staging / f"rank-{rank:05d}.receipt.json"


def remove_checkpoint(folder: Path) -> None:
    """Hide it first, so that a crash half-way never leaves a torn checkpoint under its name."""
    trash = folder.with_name(f".trash-{folder.name}")
    if trash.exists():
        shutil.rmtree(trash)
    folder.rename(trash)
    shutil.rmtree(trash)


def clean_staging(folder: RunFolder) -> None:
    """Remove what crashed attempts left; only while no other attempt can be writing."""
    for path in (*folder.checkpoints.glob(".staging-*"), *folder.checkpoints.glob(".trash-*")):
        shutil.rmtree(path)
