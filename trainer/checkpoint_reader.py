"""Loading: the newest checkpoint that is whole and valid, each rank reading just the ranges it needs."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from configs.errors import CheckpointError, DamagedCheckpointError
from trainer.checkpoint_format import Manifest, StoredFragment, check_coverage, read_manifest, verify_file
from trainer.engine import Engine, ReadSlice, Scalars
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder


def newest_valid(folder: RunFolder, ranks: Ranks, damaged: Callable[[str], None]) -> Manifest | None:
    """The newest checkpoint whose every file matches its manifest, checked by all ranks together before any loads.

    A damaged one is put aside as `damaged-step-…`, reported through `damaged`, and the one before it is tried.
    """
    for step in reversed(ranks.from_leader(folder.published_steps())):
        path = folder.checkpoint(step)
        problem = _first_problem(path, ranks)
        if problem is None:
            return read_manifest(path)
        if ranks.leads:
            aside = _put_aside(path)
            damaged(f"{problem}; put aside as {aside.name}, trying the checkpoint before it")
        ranks.sum([0.0])  # nobody looks at the folder again before it is renamed
    if any(folder.checkpoints.glob("damaged-*")):
        # Starting over in silence would throw the whole run away.
        raise CheckpointError(
            f"every checkpoint in {folder.checkpoints} is damaged (kept as damaged-step-…): "
            "restore one from a backup, or remove the folder to start over"
        )
    return None


def _put_aside(path: Path) -> Path:
    taken = sum(1 for _ in path.parent.glob(f"damaged-{path.name}*"))
    aside = path.with_name(f"damaged-{path.name}" + (f".{taken}" if taken else ""))
    path.rename(aside)
    return aside


def _first_problem(path: Path, ranks: Ranks) -> str | None:
    """What any rank found wrong with the files it looked at, the same answer on every rank."""
    problem = None
    try:
        manifest = read_manifest(path)
        check_coverage(manifest)
        for stored in manifest.files[ranks.rank :: ranks.world]:
            verify_file(path, stored)
    except DamagedCheckpointError as error:
        problem = str(error)
    return next((found for found in ranks.gather(problem) if found), None)


@dataclass
class CheckpointReader:
    """Random access to one verified checkpoint. Use as a context manager: it keeps its files open."""

    folder: Path
    manifest: Manifest
    _stack: ExitStack = field(default_factory=ExitStack)
    _files: dict[str, Any] = field(default_factory=dict)
    _fragments: dict[tuple[str, str], list[StoredFragment]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> "CheckpointReader":
        for fragment in self.manifest.fragments:
            self._fragments[fragment.kind, fragment.parameter].append(fragment)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, kind: str, parameter: str) -> ReadSlice | None:
        """A reader of element ranges of one state, or None when the checkpoint has no such state."""
        stored = self._fragments.get((kind, parameter))
        return (lambda start, stop: self._read_range(stored, start, stop)) if stored else None

    def _read_range(self, stored: list[StoredFragment], start: int, stop: int) -> torch.Tensor:
        result = torch.empty(stop - start, dtype=torch.float32)
        for fragment in stored:
            low, high = max(start, fragment.start), min(stop, fragment.start + fragment.count)
            if low < high:
                view = self._open(fragment.file).get_slice(fragment.key)
                result[low - start : high - start] = view[low - fragment.start : high - fragment.start]
        return result

    def buffers(self) -> dict[str, torch.Tensor]:
        return {name: self._open(file).get_tensor(f"buffer/{name}") for name, file in self.manifest.buffers.items()}

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                self._files[name] = self._stack.enter_context(safe_open(self.folder / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / name} cannot be read: {error}") from error
        return self._files[name]

    def digests(self) -> dict[str, str]:
        """sha256 of each state by `kind/parameter`, and of each buffer: the same for every layout of the same state."""
        digests = {}
        for (kind, parameter), stored in sorted(self._fragments.items()):
            digest = hashlib.sha256()
            for fragment in sorted(stored, key=lambda f: f.start):
                digest.update(self._open(fragment.file).get_tensor(fragment.key).numpy().tobytes())
            digests[f"{kind}/{parameter}"] = digest.hexdigest()
        for name, value in sorted(self.buffers().items()):
            raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            digests[f"buffer/{name}"] = hashlib.sha256(raw).hexdigest()
        return digests


def restore(engine: Engine, folder: RunFolder, manifest: Manifest) -> None:
    """Fill the engine from a verified checkpoint. Raises CheckpointError when it is another model's."""
    stored = {name: tuple(shape) for name, shape in manifest.parameters.items()}
    wanted = engine.parameter_shapes()
    differing = sorted(name for name in stored | wanted if stored.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"checkpoint step {manifest.step} holds another model: {name} is {stored.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} in the recipe ({len(differing)} parameters differ)"
        )
    with CheckpointReader(folder.checkpoint(manifest.step), manifest) as reader:
        engine.load(reader.read, reader.buffers(), Scalars(**manifest.scalars))
