"""How many failures a run has had without getting on. Pure."""

from dataclasses import asdict, dataclass


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
