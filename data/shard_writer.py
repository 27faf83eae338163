"""Deterministic WebDataset shards: the same samples give the same bytes on any machine."""

import io
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError
from data.atomic import published, sync_folder


@dataclass(frozen=True)
class ShardLimits:
    """A shard ends before it would exceed either."""

    bytes: int = 128 << 20
    samples: int = 100_000


DEFAULT_LIMITS = ShardLimits()


class ShardWriter:
    """Writes NAME-000000.tar, NAME-000001.tar, … into `folder`."""

    def __init__(self, folder: Path, name: str, limits: ShardLimits = DEFAULT_LIMITS) -> None:
        self._folder = folder
        self._name = name
        self._limits = limits
        self._buffered: list[tuple[str, dict[str, bytes]]] = []
        self._buffered_bytes = 0
        self.samples = 0
        self.bytes = 0
        self.shards = 0

    def write(self, key: str, parts: dict[str, bytes]) -> None:
        """Add a sample; parts keep their order."""
        size = sum(map(len, parts.values()))
        full = self._buffered_bytes + size > self._limits.bytes or len(self._buffered) >= self._limits.samples
        if self._buffered and full:
            self.finish()
        self._buffered.append((key, parts))
        self._buffered_bytes += size
        self.samples += 1
        self.bytes += size

    def finish(self) -> None:
        """Write the shard that is still in memory, if any."""
        if not self._buffered:
            return
        with (
            published(self._folder / f"{self._name}-{self.shards:06d}.tar") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for key, parts in self._buffered:
                for part, contents in parts.items():
                    tar.addfile(_header(f"{key}.{part}", len(contents)), io.BytesIO(contents))
        self.shards += 1
        self._buffered, self._buffered_bytes = [], 0


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, renamed to `out` when all is written. DataError when `out` already has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already exists: name another output folder, or remove it first")
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise DataError(f"packing {out} failed: {error}: check permissions and free space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _header(name: str, size: int) -> tarfile.TarInfo:
    # TarInfo's defaults are fixed: no owner, time 0, mode 644.
    header = tarfile.TarInfo(name)
    header.size = size
    return header
