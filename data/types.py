"""Types shared by the data package."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Say = Callable[[str], None]


def silent(_line: str) -> None:
    """A `say` for callers with nobody listening."""
