"""A page of memory in which the training process writes how far it has come, and its shell reads it at any time.

A beat says what was true when it was sent; the page says what is true now, even of a process that is stopped or dead.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Self

_RECORD = struct.Struct("<QQ64s")  # progress, step, phase


@dataclass(frozen=True)
class Position:
    """`progress` counts the pieces of work that were begun; `step` is the last one done; `phase` is of the next."""

    progress: int = 0
    step: int = 0
    phase: str = "starting"


class PositionPage:
    """Shared memory with one Position. Made by the shell; the process opens it by `path`.

    Without a lock, as a stopped process would hold it for ever: a reader may see a torn phase, once.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _RECORD.size)

    @classmethod
    def make(cls) -> Self:
        """A new page at position 0, in memory alone: it goes with its last descriptor."""
        descriptor = os.memfd_create("stoker-position")
        os.ftruncate(descriptor, _RECORD.size)
        page = cls(descriptor)
        page.write(Position())
        return page

    @classmethod
    def open(cls, path: str) -> Self:
        """The page that another process made. Raises OSError when that process has ended."""
        return cls(os.open(path, os.O_RDWR))

    @property
    def path(self) -> str:
        """Valid for every process of this user and host, as long as this one keeps the page open."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def write(self, position: Position) -> None:
        """Replace the position; a phase of more than 64 bytes is cut."""
        _RECORD.pack_into(self._memory, 0, position.progress, position.step, position.phase.encode()[:64])

    def read(self) -> Position:
        """The position that was written last."""
        progress, step, phase = _RECORD.unpack_from(self._memory, 0)
        return Position(progress, step, phase.rstrip(b"\0").decode(errors="replace"))

    def close(self) -> None:
        """Give the memory back; the other end keeps its own view."""
        self._memory.close()
        os.close(self._descriptor)
