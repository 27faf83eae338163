"""Data sets at hand on any machine, packed as shards: scikit-learn's digits and Python's own library."""

import io
import sysconfig
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import ResourceError
from data.pack import Packed, Parts, hash_fraction, pack_text_files, write_splits
from data.shard_writer import ShardLimits, new_folder
from data.types import Array, Say, silent

DIGITS_VAL_FRACTION = 0.2
STDLIB_VAL_FRACTION = 0.05
DIGITS_LIMITS = ShardLimits(samples=500)
STDLIB_LIMITS = ShardLimits(bytes=1 << 20)
_MAX_GREY = 16  # of scikit-learn's digits
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def pack_digits(out: Path, limits: ShardLimits = DIGITS_LIMITS, say: Say = silent) -> Packed:
    """1797 handwritten digits, 8×8 grey PNG with part cls; a fifth of each class is val."""
    images_NHW, labels_N = _load_digits()
    index = {f"digit-{number:04d}": number for number in range(len(labels_N))}
    val = _stratified(list(index), labels_N.tolist(), DIGITS_VAL_FRACTION)

    def read(name: str) -> Parts:
        pixels_HW = np.rint(images_NHW[index[name]] * (255 / _MAX_GREY)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels_HW).save(file, "PNG")
        return {"png": file.getvalue(), "cls": str(labels_N[index[name]]).encode()}

    with new_folder(out) as partial:
        return write_splits(partial, out, index, read, val.__contains__, limits, say)


def pack_stdlib(out: Path, limits: ShardLimits = STDLIB_LIMITS, say: Say = silent) -> Packed:
    """The Python files of this interpreter's standard library, without its tests, as part txt."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    relative = (p.relative_to(folder) for p in folder.rglob("*.py"))
    paths = [p.as_posix() for p in relative if not _NOT_LIBRARY & set(p.parts)]
    return pack_text_files(folder, paths, out, STDLIB_VAL_FRACTION, limits, say)


def _load_digits() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ResourceError("scikit-learn, which has the digits, is not installed: pip install scikit-learn") from error
    digits = load_digits()
    return digits.images, digits.target


def _stratified(names: list[str], labels: list[int], fraction: float) -> set[str]:
    """The names of the lowest hashes of each class, `fraction` of it."""
    chosen: set[str] = set()
    for label in set(labels):
        members = [name for name, of in zip(names, labels, strict=True) if of == label]
        members.sort(key=lambda name: hash_fraction(f"val {name}"))
        chosen.update(members[: round(fraction * len(members))])
    return chosen
