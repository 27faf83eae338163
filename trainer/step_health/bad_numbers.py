"""Which losses and gradients are bad: pure, so that every rank, and every resume, judges alike."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from cluster.run.events import Event
from cluster.run.run_events import BadNumberFound
from configs.recipe import Spike

__all__ = ["left_out_batches"]


_SIGMA_PER_MAD = 1.4826  # of a normal distribution
_LEAST_SIGMA = 1e-3  # of the median: losses that hardly differ would make any change a spike


@dataclass(frozen=True)
class BadNumber:
    """What is wrong with a step. `limit` is the largest loss that would have passed; None where none would."""

    cause: Literal["loss", "gradient", "spike", "overflows", "state"]
    value: float
    limit: float | None = None
    what: str = ""  # of the state

    def __str__(self) -> str:
        match self.cause:
            case "loss":
                return f"the loss is {self.value}"
            case "gradient":
                return f"the gradient norm is {self.value}"
            case "overflows":
                return (
                    f"the gradients have overflowed fp16 {self.value:g} times in a row (loss_scale.max_skipped_steps)"
                )
            case "state":
                return f"{self.what} holds a value that is not finite"
            case "spike":
                return f"the loss {self.value:.6g} is a spike, above {self.limit:.6g} (bad_numbers.spike)"


@dataclass
class LossWindow:
    """The last good losses of the run, and whether another one fits them."""

    spike: Spike | None
    losses: deque[float] = field(default_factory=deque)

    @classmethod
    def of(cls, spike: Spike | None, losses: Iterable[float] = ()) -> "LossWindow":
        """`losses`: what a checkpoint kept, oldest first; of a longer window only the newest count."""
        return cls(spike, deque(losses, maxlen=spike.window_steps if spike else 0))

    def accept(self, loss: float) -> None:
        """Count a good loss in."""
        self.losses.append(loss)

    def judge(self, loss: float, grad_norm: float = 0.0) -> BadNumber | None:
        """What is wrong with this step, if anything. A falling loss never is.

        The loss comes first: of an update that was refused for it, no gradient norm is known.
        """
        if not math.isfinite(loss):
            return BadNumber("loss", loss)
        limit = self.limit()
        if limit is not None and loss > limit:
            return BadNumber("spike", loss, limit)
        return None if math.isfinite(grad_norm) else BadNumber("gradient", grad_norm)

    def limit(self) -> float | None:
        """The largest loss that is no spike; None while the window fills."""
        if self.spike is None or len(self.losses) < self.spike.window_steps:
            return None
        middle = median(self.losses)
        deviation = median(abs(loss - middle) for loss in self.losses)
        return middle + self.spike.z * max(_SIGMA_PER_MAD * deviation, _LEAST_SIGMA * abs(middle))


def left_out_batches(events: Iterable[Event]) -> dict[int, str]:
    """The steps whose global batches a run leaves out, and why, by its ledger."""
    return {e.step: e.message for e in events if isinstance(e, BadNumberFound) and e.left_out}
