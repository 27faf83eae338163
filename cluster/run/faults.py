"""What a fault of a run is, and which errors only follow from another rank that is lost."""

import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["FaultPlace", "is_echo"]


# Where gloo's connections break or time out; its checks say `[enforce fail at` instead, and are causes.
_GLOO = re.compile(r"^\[(\S*/)?gloo/transport/\w+/(pair|unbound_buffer)\.cc:\d+\] ", re.MULTILINE)
_NCCL = (
    "ncclRemoteError",
    "remote process exited or there was a network error",
    "Connection closed by remote peer",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)


def is_echo(error: BaseException | None) -> bool:
    """Whether an error is what a rank sees of another one that is lost: a broken collective, or what came of one.

    By torch's own types and texts, as of 2.13: a user's error may have `connection` or `gloo` in its words too.
    """
    while error is not None:
        if _is_of_lost_peer(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _is_of_lost_peer(error: BaseException) -> bool:
    # By name: whoever asks need not have imported torch.
    kinds, text = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}, str(error)
    if "torch.distributed.DistBackendError" in kinds:  # of NCCL, which has causes of its own too
        return any(words in text for words in _NCCL)
    if kinds & {"torch.distributed.DistNetworkError", "torch.distributed.DistStoreError"}:
        return "server socket" not in text  # that is this rank's own
    return type(error) is RuntimeError and _GLOO.search(text) is not None


@dataclass(frozen=True, kw_only=True)
class FaultPlace:
    """Where a fault was. None: not known; `step`: the last one that was finished; `log`: "" where there is none."""

    attempt: int | None = None
    invocation: str | None = None
    rank: int | None = None
    host: str | None = None
    pid: int | None = None
    step: int | None = None
    phase: str | None = None
    log: str = ""

    def fields(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)
