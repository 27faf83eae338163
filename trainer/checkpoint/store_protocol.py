"""Where checkpoints lie: what the writer, the reader, retention and the commands need of a place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from configs.errors import CheckpointError, DamagedCheckpointError
from trainer.checkpoint.manifest import MANIFEST, Manifest, StoredFile, decode_manifest

__all__ = ["CheckpointFolder", "CheckpointStore", "list_steps", "read_manifest"]


T = TypeVar("T")


@dataclass(frozen=True)
class SaveId:
    """Which save of which attempt: no other save, of this attempt or another, shares its staging."""

    attempt: int
    number: int
    step: int

    @property
    def name(self) -> str:
        """Part of names in the store; no two saves of a run have the same."""
        return f"{self.attempt}-{self.number}-{self.step:08d}"


class StoredBytes(Protocol):
    """One file of a checkpoint, open for reading at any place; threads may share it."""

    def size_bytes(self) -> int:
        """Length of the file now. Raises OSError."""

    def read_into(self, offset: int, into: memoryview, size_bytes: int) -> None:
        """Fill the first `size_bytes` of `into`, whole pages of `host_memory`; `offset` begins a page too.

        Raises EOFError when the file ends before, OSError.
        """

    def close(self) -> None:
        """Release the file."""


class Staging(Protocol):
    """The part-written checkpoint of one save; every rank has one of its own on the same place."""

    def file_name(self, name: str) -> str:
        """What the manifest calls the file `name`, relative to the checkpoint."""

    def write(self, name: str, image: memoryview) -> StoredBytes:
        """Store a file; it is durable, and open for reading whatever is renamed later, when this returns.

        Raises OSError.
        """

    def publish(self, manifest: bytes) -> bool:
        """Make it the checkpoint of its step, in one step that a crash cannot cut. Raises OSError.

        False when there was one already; but that of an older attempt is replaced.
        """

    def discard(self) -> None:
        """Remove what all ranks have staged. Raises OSError."""


class CheckpointFolder(Protocol):
    """One published checkpoint."""

    where: str  # starts every message

    def manifest(self) -> bytes:
        """The manifest's file, not decoded. Raises OSError."""

    def open(self, name: str) -> StoredBytes:
        """The file that the manifest calls `name`. Raises OSError."""


class CheckpointStore(Protocol):
    """All checkpoints of a run. Its methods raise OSError (FileNotFoundError for what is not there)."""

    where: str

    def steps(self) -> list[int]:
        """Of the published checkpoints, oldest first; staging never counts."""

    def at(self, step: int) -> CheckpointFolder:
        """The checkpoint of `step`; whether it is there shows when it is read."""

    def staging(self, save: SaveId) -> Staging:
        """Where `save` gathers its files: the same place on every rank."""

    def probe(self) -> None:
        """Write something, and remove it. Raises OSError where that cannot be done."""

    def put_aside(self, step: int) -> str:
        """Keep a damaged checkpoint under another name, which is returned."""

    def damaged(self) -> bool:
        """Whether any was put aside."""

    def remove(self, step: int) -> None:
        """Remove a published checkpoint. A crash half-way leaves no torn one under its name."""

    def clean(self) -> None:
        """Remove what crashed saves and removals left; only while no other attempt can be writing."""


def list_steps(store: CheckpointStore) -> list[int]:
    """The steps of the published checkpoints. Raises CheckpointError when the store does not answer."""
    return translate_errors(store.where, store.steps)


def read_manifest(folder: CheckpointFolder) -> Manifest:
    """Raises DamagedCheckpointError naming the file, CheckpointError when it is of another format or unreadable."""
    where = f"{folder.where}/{MANIFEST}"
    return decode_manifest(translate_errors(where, folder.manifest), where)


def of_older_attempt(folder: CheckpointFolder, save: SaveId) -> bool:
    """Whether a superseded attempt published it behind the back of the attempt that saves now, or it is damaged."""
    try:
        return read_manifest(folder).attempt < save.attempt
    except DamagedCheckpointError:
        return True


def open_stored(folder: CheckpointFolder, stored: StoredFile) -> StoredBytes:
    """Raises DamagedCheckpointError when the file is missing or of another size, CheckpointError when unreadable."""
    where = f"{folder.where}/{stored.name}"
    file = translate_errors(where, lambda: folder.open(stored.name))
    size = translate_errors(where, file.size_bytes)
    if size != stored.bytes:
        file.close()
        raise DamagedCheckpointError(f"{where} has {size} bytes, its manifest says {stored.bytes}")
    return file


def translate_errors(where: str, act: Callable[[], T]) -> T:
    """`act()`. Raises DamagedCheckpointError for a missing or short file, CheckpointError for any other OSError.

    One that cannot be read may be whole: only damage lets a reader go back to an older checkpoint.
    """
    try:
        return act()
    except (FileNotFoundError, EOFError, IsADirectoryError, NotADirectoryError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"is cut short or no file: {error}"
        raise DamagedCheckpointError(f"{where} {problem}") from error
    except OSError as error:
        # obstore's errors have a whole traceback in them.
        cause = (error.strerror or str(error) or type(error).__name__).splitlines()[0][:300]
        raise CheckpointError(f"{where} cannot be read: {cause}") from error
