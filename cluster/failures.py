"""How many failures a run has had without getting on. Pure."""

from dataclasses import asdict, dataclass

_AFTERMATH_S = 60.0
_MOST_FORGIVEN = 5


@dataclass(frozen=True)
class Failures:
    """Failures in a row without a newer checkpoint in between."""

    count: int = 0
    committed: int = 0

    def another(self, committed: int) -> "Failures":
        """After one more failure, with `committed` the step of the newest checkpoint."""
        return Failures(1 if committed > self.committed else self.count + 1, max(committed, self.committed))

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


def is_consequence(text: str) -> bool:
    """Whether an error's text is what the other ranks see of a lost one: a broken connection inside a collective."""
    return any(word in text.lower() for word in ("gloo", "nccl", "connection"))
