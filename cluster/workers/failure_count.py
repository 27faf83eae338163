"""How many failures a run has had without getting on. Pure."""

from dataclasses import asdict, dataclass, replace

__all__ = ["MOST_LOST_HOSTS", "Failures"]


_AFTERMATH_S = 60.0
_MOST_FORGIVEN = 5
MOST_LOST_HOSTS = 20  # in a row: by then it is one host that comes and goes, or a checkpoint is never reached


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
        """For the key-value store."""
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
