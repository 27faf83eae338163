"""Random numbers that follow from a key alone: the same on every machine, worker and numpy version."""

import hashlib

import numpy as np
import numpy.typing as npt

from data.types import Ints

Key = tuple[str | int, ...]


def raw(count: int, key: Key) -> npt.NDArray[np.uint64]:
    """`count` 64-bit draws. Philox's raw stream is stable across numpy versions; Generator's methods are not."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def permutation(count: int, key: Key) -> Ints:
    """A permutation of 0 … count-1."""
    return np.argsort(raw(count, key), kind="stable")


def uniforms(count: int, key: Key) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1)."""
    return (raw(count, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
