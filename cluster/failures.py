"""How many failures a run has had without getting on, and which errors only follow from another rank's. Pure."""

import re
from dataclasses import asdict, dataclass, replace

_AFTERMATH_S = 60.0
_MOST_FORGIVEN = 5
MOST_LOST_HOSTS = 20  # in a row: by then it is one host that comes and goes, or a checkpoint is never reached
# Where gloo's connections break or time out; its checks say `[enforce fail at` instead, and are causes.
_GLOO = re.compile(r"^\[(\S*/)?gloo/transport/\w+/(pair|unbound_buffer)\.cc:\d+\] ", re.MULTILINE)
_NCCL = (
    "ncclRemoteError",
    "remote process exited or there was a network error",
    "Connection closed by remote peer",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)


@dataclass(frozen=True)
class Failures:
    """Failures in a row without a newer checkpoint in between. Those with a lost host have a limit of their own."""

    count: int = 0
    committed: int = 0
    with_lost_host: int = 0

    def another(self, committed: int, *, lost_host: bool = False) -> "Failures":
        """After one more failure, with `committed` the step of the newest checkpoint."""
        row = self if committed <= self.committed else Failures(committed=committed)
        if lost_host:
            return replace(row, with_lost_host=row.with_lost_host + 1)
        return replace(row, count=row.count + 1)

    def may_go_on(self, most: int) -> bool:
        """With `most` workers.max_failures."""
        return self.count <= most and self.with_lost_host <= MOST_LOST_HOSTS

    def limit(self, most: int) -> str:
        """The one that is passed."""
        if self.with_lost_host > MOST_LOST_HOSTS:
            return f"after {MOST_LOST_HOSTS} restarts for lost hosts without a newer checkpoint"
        return f"after {most} restarts without a newer checkpoint, workers.max_failures"

    def encode(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Aftermath:
    """Starts that fail because Ray does not know yet that a node is lost: part of one failure, not more of them."""

    last: float = -_AFTERMATH_S
    forgiven: int = 0

    def forgives(self, now: float) -> bool:
        """Whether this failed start, at `now` in seconds, is not to be counted."""
        self.forgiven = self.forgiven + 1 if now - self.last < _AFTERMATH_S else 1
        self.last = now
        return self.forgiven <= _MOST_FORGIVEN


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
