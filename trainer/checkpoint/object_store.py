"""Checkpoints in an object store: published by putting the manifest, once, with If-None-Match.

{prefix}/step-NNNNNNNN/{attempt}-{save}-{step}/rank-….safetensors    immutable: no other save writes there
{prefix}/step-NNNNNNNN/manifest.json                                 last; without it there is no checkpoint
"""

import errno
import re
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore

from configs.errors import CheckpointError, RunFolderError
from trainer.checkpoint.folder_store import step_name
from trainer.checkpoint.manifest import MANIFEST, decode_manifest
from trainer.checkpoint.store_protocol import SaveId, of_older_attempt

T = TypeVar("T")
_ASIDE = "damaged-manifest"
_PART_BYTES = 8 << 20  # of a multipart upload; S3 takes 10,000 parts, so a rank's file may have 80 GB
_CONNECTIONS = 4  # of one upload: every rank of a host uploads at the same time
_TRIES = 6
_RETRIES = 5  # obstore's own, of what a store does not answer
_BRIEF_TRIES = 2  # where nothing is to be retried for long, each of them already with obstore's _RETRIES
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class _ConflictError(Exception):
    """Another request for the same object was under way."""


def open_object_store(url: str, environment: Mapping[str, str]) -> ObjectStore:
    """`url` names a bucket and a prefix; credentials and endpoint are obstore's to find, in the environment.

    Raises RunFolderError when that is not enough.
    """
    retries: Any = {"max_retries": _RETRIES, "backoff": {"init_backoff": timedelta(seconds=_FIRST_PAUSE_S)}}
    plain = environment.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    options: Any = {"timeout": "120s", "connect_timeout": "5s", "allow_http": plain}
    try:
        return obstore.store.from_url(url, retry_config=retries, client_options=options)
    except (BaseError, ValueError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise RunFolderError(f"checkpoint.dir {url} cannot be used: {first_line}") from error


def _retry(where: str, act: Callable[[], T], retry_s: float) -> T:
    """`act()`, again after errors that obstore itself does not retry, such as 409 and a lost upload. Raises OSError.

    At least _TRIES times, and for `retry_s`; a refusal only _TRIES times. With `retry_s` 0 no more than _BRIEF_TRIES
    of what obstore itself has asked for again and again: somebody waits at the terminal.
    """
    pause_s, tries, deadline = _FIRST_PAUSE_S, 0, time.monotonic() + retry_s
    while True:
        tries += 1
        try:
            return act()
        except (BaseError, _ConflictError) as error:
            refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
            in_vain = retry_s <= 0 and tries >= _BRIEF_TRIES and f"after {_RETRIES} retries" in str(error)
            if in_vain or (tries >= _TRIES and (refused or time.monotonic() > deadline)):
                first_line = (str(error).splitlines() or [""])[0][:300]
                raise OSError(errno.EIO, f"{where}: {first_line}") from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Objects:
    """The few operations that checkpoints need, each tried again for `retry_s`. They raise OSError, as a disk would."""

    def __init__(self, store: ObjectStore, where: str, retry_s: float) -> None:
        self._store, self.where, self._retry_s = store, where, retry_s

    def _act(self, path: str, act: Callable[[], T]) -> T:
        return _retry(f"{self.where}/{path}", act, self._retry_s)

    def retrying_briefly(self) -> "_Objects":
        """The same objects for somebody who waits."""
        return _Objects(self._store, self.where, 0.0)

    def get(self, path: str) -> bytes:
        return self._act(path, lambda: obstore.get(self._store, path).bytes().to_bytes())

    def range_into(self, path: str, offset: int, into: memoryview) -> None:
        act = lambda: obstore.get_range(self._store, path, start=offset, length=len(into))  # noqa: E731
        found = memoryview(self._act(path, act))
        if len(found) < len(into):
            raise EOFError(f"the object ends at byte {offset + len(found)}")
        into[:] = found

    def size_bytes(self, path: str) -> int:
        return int(self._act(path, lambda: obstore.head(self._store, path))["size"])

    def put(self, path: str, content: memoryview) -> None:
        def act() -> None:
            obstore.put(self._store, path, content, chunk_size=_PART_BYTES, max_concurrency=_CONNECTIONS)

        self._act(path, act)

    def create(self, path: str, content: bytes) -> bool:
        """Put what must not exist yet. True also when an earlier try of this very put went through unheard."""

        def act() -> bool:
            try:
                obstore.put(self._store, path, content, mode="create", use_multipart=False)
            except AlreadyExistsError as error:  # 412; and 409, after which there may be nothing
                # A retried put whose first answer was lost finds its own content: that is a success, not a loss.
                try:
                    return obstore.get(self._store, path).bytes() == content
                except FileNotFoundError:
                    raise _ConflictError(str(error)) from error
            return True

        return self._act(path, act)

    def paths(self, prefix: str = "") -> list[str]:
        def act() -> list[str]:
            return [entry["path"] for page in obstore.list(self._store, prefix or None) for entry in page]

        return sorted(self._act(prefix, act))

    def delete(self, paths: list[str]) -> None:
        if paths:
            self._act("", lambda: obstore.delete(self._store, paths))


class ObjectFile:
    """One object, read by ranges."""

    def __init__(self, objects: _Objects, path: str) -> None:
        self._objects, self._path = objects, path

    def size_bytes(self) -> int:
        """As the store has it now: one HEAD request. Raises OSError."""
        return self._objects.size_bytes(self._path)

    def read_into(self, offset: int, into: memoryview, size_bytes: int) -> None:
        """Fill the first `size_bytes` of `into` by one range request. Raises EOFError, OSError."""
        self._objects.range_into(self._path, offset, into[:size_bytes])

    def close(self) -> None:
        """Nothing is held."""


class ObjectCheckpoint:
    """One published checkpoint."""

    def __init__(self, objects: _Objects, step: int) -> None:
        self._objects, self._prefix = objects, step_name(step)
        self.where = f"{objects.where}/{self._prefix}"

    def manifest(self) -> bytes:
        """All of manifest.json. Raises OSError."""
        return self._objects.get(f"{self._prefix}/{MANIFEST}")

    def open(self, name: str) -> ObjectFile:
        """A file of the checkpoint; asks nothing of the store yet."""
        return ObjectFile(self._objects, f"{self._prefix}/{name}")


class ObjectStaging:
    """A prefix of one save, below the step that it will be."""

    def __init__(self, objects: _Objects, save: SaveId) -> None:
        self._objects, self._save, self._step = objects, save, step_name(save.step)

    def file_name(self, name: str) -> str:
        """With the save's own prefix, as an object stays where it was put."""
        return f"{self._save.name}/{name}"

    def write(self, name: str, image: memoryview) -> ObjectFile:
        """Upload a file of this rank; complete and durable when this returns. Raises OSError."""
        path = f"{self._step}/{self.file_name(name)}"
        self._objects.put(path, image)
        return ObjectFile(self._objects, path)

    def publish(self, manifest: bytes) -> bool:
        """Put the manifest where none is. False where a checkpoint of this step is there already. Raises OSError."""
        path = f"{self._step}/{MANIFEST}"
        if self._objects.create(path, manifest):
            return True
        if not of_older_attempt(ObjectCheckpoint(self._objects, self._save.step), self._save):
            return False  # what was staged is removed at the next cleaning: it is still to be read back
        # Deleted, then created, never overwritten: should a third attempt put its own in between, `create` yields.
        self._objects.delete([path])
        return self._objects.create(path, manifest)

    def discard(self) -> None:
        """Remove what was staged, by all ranks. Raises OSError, soon: the training waits."""
        objects = self._objects.retrying_briefly()  # what is left is removed at the next start
        objects.delete(objects.paths(f"{self._step}/{self._save.name}"))


class ObjectCheckpointStore:
    """All checkpoints below one prefix. obstore does not outlive a fork: workers are spawned."""

    def __init__(self, store: ObjectStore, where: str, retry_s: float = 0.0) -> None:
        """`retry_s`: how long a store that does not answer is asked again."""
        self._objects = _Objects(store, where, retry_s)
        self.where = where

    def steps(self) -> list[int]:
        """Of the published checkpoints, oldest first: steps with a manifest. Raises OSError."""
        return sorted(step for step, names in self._by_step().items() if MANIFEST in names)

    def _by_step(self) -> dict[int, list[str]]:
        """Of every step: the paths below it."""
        found: dict[int, list[str]] = {}
        for path in self._objects.paths():
            if match := re.fullmatch(r"step-(\d{8,})/(.+)", path):
                found.setdefault(int(match[1]), []).append(match[2])
        return found

    def at(self, step: int) -> ObjectCheckpoint:
        """The checkpoint of `step`, whether it is there or not."""
        return ObjectCheckpoint(self._objects, step)

    def staging(self, save: SaveId) -> ObjectStaging:
        """Where `save` puts its files: below its step, under a name that no other save has."""
        return ObjectStaging(self._objects, save)

    def probe(self) -> None:
        """Put a small object and remove it. Raises OSError where that is refused."""
        name = f"probe-{uuid.uuid4().hex}"
        self._objects.put(name, memoryview(b"probe"))
        self._objects.delete([name])

    def put_aside(self, step: int) -> str:
        """Its manifest gets another name, as objects cannot be renamed: the files stay where they are."""
        prefix = step_name(step)
        taken = sum(path.startswith(f"{prefix}/{_ASIDE}") for path in self._objects.paths(prefix))
        aside = f"{prefix}/{_ASIDE}-{taken}.json"
        # Copied before it is removed: a crash in between leaves both, and the next start does it again.
        self._objects.put(aside, memoryview(self._objects.get(f"{prefix}/{MANIFEST}")))
        self._objects.delete([f"{prefix}/{MANIFEST}"])
        return aside

    def damaged(self) -> bool:
        """Whether any was put aside. Lists the whole prefix."""
        return any(name.startswith(_ASIDE) for names in self._by_step().values() for name in names)

    def remove(self, step: int) -> None:
        """Remove a published checkpoint. Raises OSError."""
        prefix = step_name(step)
        self._objects.delete([f"{prefix}/{MANIFEST}"])  # first: from now on it is no checkpoint
        self._objects.delete(self._objects.paths(prefix))

    def clean(self) -> None:
        """Remove files that no manifest names. Raises OSError. Only while no other attempt can be writing."""
        for step, names in self._by_step().items():
            if any(name.startswith(_ASIDE) for name in names):
                continue  # kept for whoever looks into the damage
            kept = self._files_of(step) if MANIFEST in names else set()
            if kept is not None:
                self._objects.delete([f"{step_name(step)}/{name}" for name in names if name not in kept])

    def _files_of(self, step: int) -> set[str] | None:
        folder = self.at(step)
        try:
            manifest = decode_manifest(folder.manifest(), folder.where)
        except CheckpointError:  # the workers will find it and put it aside
            return None
        return {MANIFEST, *(stored.name for stored in manifest.files)}
