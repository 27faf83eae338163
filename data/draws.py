"""Random numbers that follow from a key alone: the same on every machine, worker and numpy version."""

import hashlib
import threading

import numpy as np
import numpy.typing as npt

from data.arrays import Ints

__all__ = ["Key", "permutation", "raw", "uniforms"]


Key = tuple[str | int, ...]
_FEW = 512


def raw(count: int, key: Key) -> npt.NDArray[np.uint64]:
    """`count` 64-bit draws. Philox's raw stream is stable across numpy versions; Generator's methods are not."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    philox = _LOCAL.philox
    philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": _NOTHING, "key": np.frombuffer(digest, "<u8", 2)},
        "buffer": _NOTHING,
        "buffer_pos": len(_NOTHING),
        "has_uint32": 0,
        "uinteger": 0,
    }
    drawn: npt.NDArray[np.uint64] = philox.random_raw(count)
    return drawn


class _Local(threading.local):
    """A generator of each thread, set to the key each time: to make one takes four times as long."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)


_LOCAL = _Local()
_NOTHING = np.zeros(4, np.uint64)


def permutation(count: int, key: Key) -> Ints:
    """A permutation of 0 … count-1: the stable order of `count` draws."""
    draws = raw(count, key)
    return stable_order(draws) if count > _FEW else np.argsort(draws, kind="stable")


def stable_order(draws: npt.NDArray[np.uint64]) -> Ints:
    """As a stable argsort; of random numbers in a quarter of its time.

    Each number's low bits make room for its place, so that a plain sort carries the places along.
    """
    bits = np.uint64(max(len(draws) - 1, 0).bit_length())
    places = (np.uint64(1) << bits) - np.uint64(1)
    packed = draws & ~places
    packed |= np.arange(len(draws), dtype=np.uint64)
    packed.sort()
    high = packed >> bits
    if (high[1:] == high[:-1]).any():  # the bits that had to go made the difference between them
        return np.argsort(draws, kind="stable")
    packed &= places
    return packed.view(np.int64)


def uniforms(count: int, key: Key) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1)."""
    return (raw(count, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
