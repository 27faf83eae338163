"""Data sets at hand on any machine, packed as shards: scikit-learn's digits and Python's own library."""

import io
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import ResourceError
from data.arrays import Array, Ints, Say, silent
from data.images.image_samples import LABEL_PART
from data.pack.pack_plan import Draws, Inputs, PackJob, Sample, digest_of, hash_fraction, hash_order
from data.pack.packing_run import PackOptions, PackSummary, pack_shards
from data.pack.shard_writer import ShardLimits, tar_bytes
from data.pack_inputs.file_inputs import text_inputs
from data.pack_inputs.list_files import list_files

__all__ = ["pack_digits", "pack_stdlib"]


DIGITS_VAL_FRACTION = 0.2
STDLIB_VAL_FRACTION = 0.05
DIGITS_LIMITS = ShardLimits(samples=500)
STDLIB_LIMITS = ShardLimits(bytes=1 << 20)
_MAX_GREY = 16  # of scikit-learn's digits
_PNG_BYTES = 200  # of a digit, at most
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class DigitJob:
    """Digits as PNG with their labels."""

    keys: list[str]
    images: Array  # [sample, height, width]
    labels: Ints

    def samples(self) -> Iterator[Sample]:
        """A sample per digit: parts png and cls."""
        for key, image_HW, label in zip(self.keys, self.images, self.labels.tolist(), strict=True):
            pixels_HW = np.rint(image_HW * (255 / _MAX_GREY)).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels_HW).save(file, "PNG")
            yield Sample(key, {"png": file.getvalue(), LABEL_PART: b"%d" % label})


def pack_digits(out: Path, limits: ShardLimits = DIGITS_LIMITS, say: Say = silent) -> PackSummary:
    """1797 handwritten digits, 8×8 grey PNG with part cls; a fifth of each class is val."""
    images_NHW, labels_N = _load_digits()
    keys = [f"digit-{number:04d}" for number in range(len(labels_N))]

    def job(numbers: Ints) -> PackJob:
        return DigitJob([keys[n] for n in numbers], images_NHW[numbers], labels_N[numbers])

    inputs = Inputs(
        kind="digits",
        options={},
        sizes=np.full(len(keys), tar_bytes([_PNG_BYTES, 1])),
        order=hash_order(keys),
        draws=_stratified_draws(keys, labels_N),
        digest=digest_of(keys),
        modified="",
        job=job,
    )
    return pack_shards(inputs, out, DIGITS_VAL_FRACTION, limits, PackOptions(say=say))


def pack_stdlib(out: Path, limits: ShardLimits = STDLIB_LIMITS, say: Say = silent) -> PackSummary:
    """The Python files of this interpreter's standard library, without its tests, as part txt."""
    listing = list_files(Path(sysconfig.get_paths()["stdlib"]), "**/*.py", [], say)
    listing = listing.only([not _NOT_LIBRARY & set(name.split("/")) for name in listing.names])
    return pack_shards(text_inputs(listing, {}, None), out, STDLIB_VAL_FRACTION, limits, PackOptions(say=say))


def _load_digits() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ResourceError("scikit-learn, which has the digits, is not installed: pip install scikit-learn") from error
    digits = load_digits()
    return digits.images, digits.target


def _stratified_draws(names: Sequence[str], labels_N: Ints) -> Draws:
    """Draws that are even within each class: any fraction takes the same share of every one."""
    hashes = np.array([hash_fraction(f"val {name}") for name in names])
    draws = np.empty(len(names))
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        ranks = np.argsort(np.argsort(hashes[members]))
        draws[members] = (ranks + 0.5) / len(members)
    return draws
