"""One save: each rank stores its share, rank 0 publishes, each rank reads its share back from the medium.

Knows nothing of torch: what is committed is bytes in host memory.
"""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from configs.errors import CheckpointError, DamagedCheckpointError, SupersededError
from trainer.checkpoint.block_files import (
    BLOCK_BYTES,
    block_digest,
    block_digests,
    block_spans,
    digest_of_block,
    host_memory,
)
from trainer.checkpoint.manifest import Manifest, StoredBuffer, StoredFile, StoredFragment, check_coverage
from trainer.checkpoint.rank_receipts import Receipts
from trainer.checkpoint.store_protocol import CheckpointFolder, CheckpointStore, SaveId, StoredBytes, read_manifest

_SUPERSEDED_CHECK_S = 1.0  # between two looks for a newer attempt: each reads the ledger on the shared file system


@dataclass(frozen=True)
class RankShare:
    """One rank's share of a checkpoint: the image of its safetensors file and what lies where in it."""

    header: Manifest  # complete but for files, fragments and buffers
    file: str
    image: memoryview
    fragments: list[StoredFragment]
    buffers: dict[str, StoredBuffer]


class Commit:
    """The acts of one rank in one save, in the order of the methods."""

    def __init__(
        self,
        store: CheckpointStore,
        receipts: Receipts,
        save: SaveId,
        *,
        rank: int,
        ranks: int,
        given_up: Callable[[], bool] = lambda: False,
        superseded: Callable[[], bool] = lambda: False,
        verify: Callable[[CheckpointFolder], object] = read_manifest,
    ) -> None:
        """`superseded`: whether a newer attempt has begun, after which this one changes no checkpoint.

        `verify` raises DamagedCheckpointError for a published checkpoint that is not what was written.
        """
        self._verify = verify
        self.kept = False  # `publish` has found the checkpoint of an earlier try whole: it stays in this one's place
        self._store, self._receipts, self._save = store, receipts, save
        self._rank, self._ranks, self._given_up, self._superseded = rank, ranks, given_up, superseded
        # Every rank makes its own: they meet in the store under the name of the save.
        self._staging = store.staging(save)
        self._next_check = 0.0  # for a newer attempt, while waiting

    def store_share(self, share: RankShare) -> tuple[StoredFile, StoredBytes]:
        """Store this rank's file and post the result to rank 0, also a failure. Raises what went wrong.

        The file that comes back is open: it reads the same bytes after `publish` has renamed them.
        """
        try:
            with ThreadPoolExecutor(1) as pool:  # hashing needs a processor, writing the medium
                sha256 = pool.submit(lambda: hashlib.sha256(share.image).hexdigest())
                file = self._staging.write(share.file, share.image)
                blocks = block_digests(share.image)
            name = self._staging.file_name(share.file)
            stored = StoredFile(name, len(share.image), sha256.result(), blocks)
        except Exception as error:
            # Posted even so, or rank 0 would wait up to RECEIPT_TIMEOUT_S for a file that never comes.
            self._post("stored", {"error": f"rank {self._rank} could not write {share.file}: {error}"})
            raise
        # Only now: a receipt says that the bytes are durable, and rank 0 publishes by it.
        fragments = [asdict(replace(fragment, file=name)) for fragment in share.fragments]
        buffers = {key: asdict(replace(buffer, file=name)) for key, buffer in share.buffers.items()}
        self._post("stored", {"file": asdict(stored), "fragments": fragments, "buffers": buffers})
        return stored, file

    def publish(self, header: Manifest) -> Manifest:
        """On rank 0: wait for every share, then write the manifest, which makes the checkpoint.

        A newer attempt first records that it has begun, then takes all staging away. So, after the last share: either
        this sees the record, or what it would publish is taken away as a whole, or it was published before.
        """
        posted = self._await("stored")
        manifest = replace(
            header,
            files=[StoredFile(**share["file"]) for share in posted],
            fragments=[StoredFragment(**entry) for share in posted for entry in share["fragments"]],
            buffers={name: StoredBuffer(**entry) for share in posted for name, entry in share["buffers"].items()},
        )
        check_coverage(manifest)
        # As late as can be: from the last share on, only this keeps a superseded attempt from publishing.
        self.check_current()
        if not self._staging.publish(manifest.encode()):  # of two attempts one publishes: never both, never a mixture
            self._keep_or_replace(manifest)
        return manifest

    def _keep_or_replace(self, manifest: Manifest) -> None:
        """An earlier try published its own and was doubted, maybe for no reason: one that is whole stays."""
        try:
            self._verify(self._store.at(self._save.step))
            self.kept = True
        except DamagedCheckpointError as error:
            self.check_current()  # `verify` reads whole files, for minutes: time enough for a newer attempt to begin
            aside = self._store.put_aside(self._save.step)
            if not self._staging.publish(manifest.encode()):
                raise CheckpointError(f"{error}; put aside as {aside}, and another one came in its place") from error

    def check_current(self) -> None:
        """Raises SupersededError once a newer attempt has begun."""
        if self._superseded():
            raise SupersededError("a newer attempt of this run has begun")

    def read_back(self, stored: StoredFile, file: StoredBytes) -> None:
        """Compare this rank's file, as the medium has it now, with what was to be written; post the result to rank 0.

        After `publish`, not before: what is read then is what a restart would read. Closes `file`. Raises
        DamagedCheckpointError naming the first byte that differs, EOFError, OSError.
        """
        try:
            bad = _first_bad_block(stored, file)
            if bad is not None:
                start = bad * BLOCK_BYTES
                raise DamagedCheckpointError(f"{stored.name} reads otherwise than it was written, from byte {start} on")
        except Exception as error:
            # Anything else, as a timeout, says nothing of the bytes: the checkpoint may be whole and stays.
            damaged = isinstance(error, DamagedCheckpointError | EOFError | FileNotFoundError)
            self._post("read-back", {"error": str(error), "damaged": damaged})
            raise
        finally:
            file.close()
        self._post("read-back", {})

    def await_read_back(self) -> None:
        """On rank 0: raises DamagedCheckpointError for a share that is not what was written.

        CheckpointError when that is not known.
        """
        self._await("read-back")
        self._receipts.discard()  # nobody reads or posts any more: rank 0 was the last to wait

    def discard(self) -> None:
        """On rank 0, after a failure before publication: a full disk needs the room now."""
        self._staging.discard()
        self._receipts.discard()

    def _post(self, stage: str, content: dict[str, Any]) -> None:
        self._receipts.post(stage, self._rank, content)

    def _await(self, stage: str) -> list[dict[str, Any]]:
        try:
            return self._receipts.await_all(stage, self._ranks, self._waits_in_vain)
        except CheckpointError:
            self.check_current()  # then that is the cause: it has removed the receipts
            raise

    def _waits_in_vain(self) -> bool:
        if self._given_up():
            return True
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + _SUPERSEDED_CHECK_S
        return self._superseded()


def _first_bad_block(stored: StoredFile, file: StoredBytes) -> int | None:
    memory = host_memory(BLOCK_BYTES)
    for block, (start, stop) in enumerate(block_spans(stored.bytes)):
        file.read_into(start, memory, stop - start)
        if block_digest(memory[: stop - start]) != digest_of_block(stored.blocks, block):
            return block
    return None
