"""Checkpoints in a folder of a file system that all workers share: published by a rename."""

import re
import shutil
import uuid
from pathlib import Path

from data.atomic import sync_folder
from trainer.checkpoint.block_files import BlockFile, write_file
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.store_protocol import SaveId, of_older_attempt

_STEP = re.compile(r"^step-(\d{8,})$")


def step_name(step: int) -> str:
    """Name of a published checkpoint below its store, such as step-00001000."""
    return f"step-{step:08d}"


def published_steps(root: Path) -> list[int]:
    """Steps of the checkpoints in `root`, oldest first."""
    if not root.is_dir():
        return []
    matches = (_STEP.match(path.name) for path in root.iterdir())
    return sorted(int(match[1]) for match in matches if match)


class LocalCheckpoint:
    """A published checkpoint: a folder that is never changed again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.where = str(path)

    def manifest(self) -> bytes:
        """All of manifest.json. Raises OSError."""
        return (self._path / MANIFEST).read_bytes()

    def open(self, name: str) -> BlockFile:
        """A file of the checkpoint, for reading by blocks. Raises OSError."""
        return BlockFile(self._path / name)


class LocalStaging:
    """A hidden folder beside the published ones: on the same file system, so that a rename publishes it."""

    def __init__(self, root: Path, save: SaveId) -> None:
        self._root, self._save = root, save
        self._path = root / f".staging-{save.name}"

    def file_name(self, name: str) -> str:
        """`name` itself: the folder is published as a whole."""
        return name

    def write(self, name: str, image: memoryview) -> BlockFile:
        """Store a file of this rank, durable when this returns. Raises OSError, after which nothing of it is left."""
        self._path.mkdir(parents=True, exist_ok=True)
        path = self._path / name
        try:
            write_file(path, image)
        except OSError:
            path.unlink(missing_ok=True)  # a full disk has no room for anything else until it is gone
            raise
        return BlockFile(path)

    def publish(self, manifest: bytes) -> bool:
        """Rename the folder to its step, after the manifest. False where a checkpoint of this step is in its place."""
        target = self._root / step_name(self._save.step)
        if target.exists() and not of_older_attempt(LocalCheckpoint(target), self._save):
            return False  # what was staged is removed at the next cleaning: it may still be needed
        # In this order: contents, then the names in the folder, then the folder's own name. After a power cut a folder
        # called step-… with a file or a name missing would else be possible, and would look published.
        write_file(self._path / MANIFEST, memoryview(manifest))
        sync_folder(self._path)
        if target.exists():
            _put_in_trash(target)  # rename(2) replaces no folder that holds something
        self._path.rename(target)
        # Before anybody counts on it: the writer removes older checkpoints as soon as this one is known.
        sync_folder(self._root)
        return True

    def discard(self) -> None:
        """Remove what was staged, by all ranks. Raises OSError."""
        shutil.rmtree(self._path)


class FolderStore:
    """`root`/step-NNNNNNNN for each checkpoint; names that start with a dot or `damaged-` are none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = str(root)

    def steps(self) -> list[int]:
        """Of the published checkpoints, oldest first. Raises OSError."""
        return published_steps(self._root)

    def at(self, step: int) -> LocalCheckpoint:
        """The checkpoint of `step`, whether it is there or not."""
        return LocalCheckpoint(self._root / step_name(step))

    def staging(self, save: SaveId) -> LocalStaging:
        """Where `save` gathers its files; nothing is made yet."""
        return LocalStaging(self._root, save)

    def probe(self) -> None:
        """Write a small file and remove it. Raises OSError where that cannot be done."""
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / f".probe-{uuid.uuid4().hex}"
        path.write_bytes(b"probe")
        path.unlink()

    def put_aside(self, step: int) -> str:
        """Rename a damaged checkpoint, never over another one; its new name. Raises OSError."""
        path = self._root / step_name(step)
        taken = sum(1 for _ in self._root.glob(f"damaged-{path.name}*"))
        aside = path.with_name(f"damaged-{path.name}" + (f".{taken}" if taken else ""))
        path.rename(aside)
        sync_folder(self._root)
        return aside.name

    def damaged(self) -> bool:
        """Whether any was put aside."""
        return any(self._root.glob("damaged-*"))

    def remove(self, step: int) -> None:
        """Remove a published checkpoint. Raises OSError."""
        # Renamed first: files go one by one, and a crash among them would leave a step-… folder with half of them.
        shutil.rmtree(_put_in_trash(self._root / step_name(step)))

    def clean(self) -> None:
        """Remove what crashed saves and removals left. Raises OSError. Only while no other attempt can be writing."""
        for path in self._root.glob(".staging-*"):
            _put_in_trash(path)  # at once, or what a stale writer publishes now would be half of it
        for path in self._root.glob(".trash-*"):
            shutil.rmtree(path)


def _put_in_trash(path: Path) -> Path:
    trash = path.with_name(f".trash-{path.name}")
    if trash.exists():
        shutil.rmtree(trash)
    return path.rename(trash)
