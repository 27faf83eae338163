"""Files -> train and val shards. The split and the order follow from hashes of relative paths."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError
from data.images import IMAGE_PARTS
from data.shard_writer import DEFAULT_LIMITS, ShardLimits, ShardWriter, new_folder
from data.types import Say, silent

PROGRESS_S = 2.0
_MAX_KEY = 80  # ustar has room for 100 bytes with the part
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")

Parts = dict[str, bytes]


@dataclass(frozen=True)
class Packed:
    """What was written; `skipped` counts files left out."""

    train_samples: int
    val_samples: int
    bytes: int
    shards: int
    skipped: int


def pack_text(
    folder: Path,
    pattern: str,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    say: Say = silent,
) -> Packed:
    """Files of `folder` that match a glob, as part txt, into out/train-*.tar and out/val-*.tar.

    Files that are empty or not UTF-8 are left out and counted. DataError: nothing matches, or `out` exists.
    """
    if not pattern or Path(pattern).is_absolute():
        raise DataError(f"glob {pattern!r} must be relative to the folder {folder}, such as **/*.txt")
    paths = [p.relative_to(folder).as_posix() for p in folder.glob(pattern) if p.is_file()]
    if not paths:
        raise DataError(f"{folder}: no file matches {pattern}: correct the folder or the pattern")
    return pack_text_files(folder, paths, out, val_fraction, limits, say)


def pack_text_files(
    folder: Path, paths: Sequence[str], out: Path, val_fraction: float, limits: ShardLimits, say: Say
) -> Packed:
    """As `pack_text`, for these paths relative to `folder`."""

    def read(path: str) -> Parts | None:
        text = (folder / path).read_bytes()
        return {"txt": text} if text and _is_utf8(text) else None

    with new_folder(out) as partial:
        return write_splits(partial, out, paths, read, _by_hash(paths, val_fraction), limits, say)


def pack_images(
    folder: Path,
    out: Path,
    val_fraction: float,
    limits: ShardLimits = DEFAULT_LIMITS,
    say: Say = silent,
) -> Packed:
    """`folder`/CLASS/*.jpg (jpeg, png, webp), bytes kept, with part cls; out/classes.json lists the classes by number.

    Files of other kinds are left out and counted. DataError: no class folders, no images, or `out` exists.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: name a folder with one subfolder per class")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    paths = [p.relative_to(folder).as_posix() for name in classes for p in (folder / name).rglob("*") if p.is_file()]
    if not any(_image_part(path) for path in paths):
        raise DataError(f"{folder}: no images in subfolders: expected CLASS/name.{{{','.join(IMAGE_PARTS)}}}")
    number = {name: str(i).encode() for i, name in enumerate(classes)}

    def read(path: str) -> Parts | None:
        part = _image_part(path)
        return {part: (folder / path).read_bytes(), "cls": number[path.split("/")[0]]} if part else None

    with new_folder(out) as partial:
        (partial / "classes.json").write_text(json.dumps(classes, ensure_ascii=False, indent=1) + "\n")
        return write_splits(partial, out, paths, read, _by_hash(paths, val_fraction), limits, say)


def write_splits(
    folder: Path,
    out: Path,
    names: Iterable[str],
    read: Callable[[str], Parts | None],
    is_val: Callable[[str], bool],
    limits: ShardLimits,
    say: Say,
) -> Packed:
    """Write every named sample that `read` gives into train or val shards of `folder`, in order of hash.

    Neighbours by path are alike (one class, one package), and order by hash parts them for any reader.
    """
    writers = {split: ShardWriter(folder, split, limits) for split in ("train", "val")}
    keys, skipped, said = _Keys(), 0, time.monotonic()
    for number, name in enumerate(sorted(names, key=lambda name: (hash_fraction(name), name))):
        if time.monotonic() - said > PROGRESS_S:
            say(f"packing {out}: {number} files done")
            said = time.monotonic()
        if (parts := read(name)) is None:
            skipped += 1
            continue
        writers["val" if is_val(name) else "train"].write(keys.unique(name), parts)
    for writer in writers.values():
        writer.finish()
    packed = _packed(writers["train"], writers["val"], skipped)
    if not packed.train_samples:
        raise DataError(f"{out}: no sample is left to train on ({skipped} files skipped): lower val_fraction")
    say(_summary(out, packed))
    return packed


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that follows from a name."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48


class _Keys:
    """Keys without dots, slashes or spaces, each used once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, name: str) -> str:
        key = _UNSAFE.sub("_", name)
        if len(key) > _MAX_KEY or key in self._used:
            key = f"{key[: _MAX_KEY - 13]}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"
        self._used.add(key)
        return key


def _by_hash(names: Sequence[str], val_fraction: float) -> Callable[[str], bool]:
    """Which names go to val: those of low hash; at least one of several, however small the fraction."""
    # The order is by hash too, so the split needs a hash of its own.
    hashes = {name: hash_fraction(f"val {name}") for name in names}
    lowest = min(hashes.values(), default=0.0)
    bound = max(val_fraction, lowest + 2**-48) if val_fraction and len(names) > 1 else val_fraction
    return lambda name: hashes[name] < bound


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _image_part(path: str) -> str | None:
    part = path.rsplit(".", 1)[-1].lower()
    return part if part in IMAGE_PARTS else None


def _packed(train: ShardWriter, val: ShardWriter, skipped: int) -> Packed:
    return Packed(train.samples, val.samples, train.bytes + val.bytes, train.shards + val.shards, skipped)


def _summary(out: Path, packed: Packed) -> str:
    line = (
        f"packed {out}: {packed.train_samples} train and {packed.val_samples} val samples, "
        f"{packed.bytes / 1e6:.1f} MB in {packed.shards} shards"
    )
    return line + (f"; {packed.skipped} files skipped (empty or of another kind)" if packed.skipped else "")
